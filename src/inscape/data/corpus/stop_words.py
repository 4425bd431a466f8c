"""The most frequent function words of some languages, by hand. A language that is not here has no stop-word filter."""

# fmt: off
_LISTS = {
    "en": "the of and to a in is it you that he was for on are with as his they be at one have this from or had by not but "
          "what all were we when your can said there an each which she do how their if will up other about out many then "
          "them these so some her would him into has two more no way could my than been who its now did may i me our us "
          "should must where while because also only any such most same very just over under after before between both "
          "does being those here without within",
    "fr": "le la les l de du des d un une et à a au aux en dans sur pour par avec sans sous ce cet cette ces qui que qu "
          "quoi dont où il elle on nous vous ils elles je tu se s son sa ses leur leurs votre vos notre nos mon ma mes est "
          "sont être était ont avoir été fait peut ne n pas plus si ou mais comme tout tous toute toutes même y c j m t "
          "aussi entre lorsque alors donc car très bien",
    "es": "el la los las lo un una unos unas de del y e a al en con por para sin sobre que qué se es son ser está están "
          "como su sus si no o u pero más este esta estos estas ese esa eso esto le les me te nos tu mi yo él ella ellos "
          "ha han hay fue era ser puede pueden cuando donde entre también muy ya todo todos toda todas cada cual cualquier "
          "desde hasta porque otro otra otros otras durante antes "
          "después bajo contra hacia según ni solo sólo tan tanto así bien mismo misma algo algún alguna algunos algunas "
          "quien cuales sido sea sean fueron había tiene tienen debe deben estar aquí ahora aún aunque pues mientras sino "
          "usted nosotros",
    "pt": "o a os as um uma uns umas de do da dos das e em no na nos nas ao à aos às com por para sem sobre que se é são "
          "ser está como seu sua seus suas ou mas mais este esta isso isto ele ela eles elas eu você não foi pode quando "
          "onde entre também muito já todo todos toda todas cada pelo pela num numa",
    "it": "il lo la i gli le l un uno una di del dello della dei degli delle d e ed a al allo alla ai agli alle in nel "
          "nella nei nelle con su sul sulla per tra fra da dal dalla che chi è sono essere ha hanno si non più o ma come se "
          "questo questa questi queste suo sua suoi sue anche quando dove tutto tutti può",
    "de": "der die das den dem des ein eine einen einem einer eines und in im zu zum zur von vom mit auf für an am als auch "
          "aus bei nach über um durch ist sind war wird werden wurde haben hat sein kann können sie er es ich wir ihr sich "
          "nicht so wie wenn oder aber dass daß nur noch man diese dieser dieses diesem ihre ihren ihrer",
    "ca": "el la els les l un una uns unes de del dels d i a al als en amb per sense sobre que què es s és són ser com el "
          "seu la seva si no o però més aquest aquesta aquests aquestes ho hi li ha han quan on entre també tot tots",
    "nl": "de het een en van in op te met voor aan door om bij naar uit over als dat die dit deze er is zijn was wordt "
          "worden kan kunnen u uw je jouw zij hij niet of maar ook dan nog wel geen wanneer",
    "sv": "och i att en ett det som på är av för med till den de inte du om har kan från eller så men man när din ditt "
          "dina sig var vi ska vill alla detta denna",
    "da": "og i at en et det som på er af for med til den de ikke du om har kan fra eller så men man når din dit dine sig "
          "var vi skal vil alle dette denne",
    "ru": "и в не на с что как по к из у за от для это то о но он она они мы вы я или бы же если при так его её их все "
          "быть был была до также можно чтобы только уже где когда этот эта эти",
    "uk": "і й та в у не на з із що як по до за від для це то про але він вона вони ми ви я або б би же якщо при так його "
          "її їх всі бути був була також можна щоб тільки вже де коли цей ця ці",
    "pl": "i w z na do nie się że jest to o jak po za od dla przez ale lub czy tak jego jej ich są być był może można aby "
          "tylko już gdzie gdy ten ta te tym tego przy ze oraz",
    "cs": "a v na se je že s z do o to i k pro za od po ale nebo jak jako tak jeho její jejich jsou být byl může které "
          "který která aby jen už kde když ten ta tato tento při ze ve si není",
    "ar": "في من على أن إلى ما لا هذا هذه التي الذي عن مع كان كانت أو و قد لم هو هي بين كل ذلك إن ثم حتى إذا بعد قبل عند "
          "غير له لها به بها فيه فيها منه منها عليه عليها لأن ولا وهو وهي كما أي فإن قال",
    "hi": "के का की को में से है हैं और पर यह वह एक ने कि भी नहीं हो तो ही था थे थी इस उस जो कर करने किया लिए या अपने आप "
          "साथ तक गया जब अगर सकते कुछ बाद",
    "fa": "و در به از که این را با است آن برای یک بر تا می هم یا نیز ها شما اگر هر شود کرد شد خود کند",
    "id": "yang dan di ke dari untuk dengan pada ini itu adalah dalam tidak akan atau juga oleh dapat anda saya kami mereka "
          "ia karena jika bila sebagai telah sudah lebih bisa",
    "vi": "của và là có các trong được cho không với một những này đã để người khi bạn từ ra vào tôi đến hoặc thì nếu như "
          "trên sẽ cũng",
    "hu": "a az és hogy nem is egy ez meg van el de csak ha vagy mint már be ki fel le azt ezt minden lehet az ön",
    "el": "ο η το οι τα του της των τον την στο στη στην στον και να με για από που σε δεν θα είναι αν ή ένα μια μία ως "
          "αυτό αυτή σας τις τους",
    "hr": "i u na je se da za od s sa su ne a o ili kao ako što to koji koja koje iz po do može biti samo te ali",
    "sl": "in v na je se da za od s z so ne o ali kot če ki to iz po do lahko biti tudi pa",
    "eo": "la de kaj en al estas mi vi li ŝi ĝi ni ili ne ke por kun el pri se kiel aŭ sed tio ĉi kiu via tiu",
    "gl": "o a os as un unha de do da dos das e en no na nos nas ao á aos ás con por para sen sobre que se é son ser está "
          "como seu súa ou mais máis este esta non pode cando onde entre tamén",
    "sw": "na ya wa kwa ni la za katika kama hii huyo ambaye hiyo yake wake lakini si au cha vya watu mimi wewe yeye sisi "
          "ninyi wao kuwa",
    "lv": "un ir uz no ar par kas ka lai vai ne tas tā šo šis var kā pie ja arī pēc bet viņš jūs to",
}
# fmt: on

STOP_WORDS = {language: frozenset(words.split()) for language, words in _LISTS.items()}

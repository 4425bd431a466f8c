"""The commands that make something and report on it: a corpus, a tokenizer, a model. Named as they are typed.

They are studies in form: a ``Config``, a function that fills a run folder, a page. What they make lies in that folder.
"""

from inscape.studies import (
    corpus_build,
    corpus_build_page,
    evaluate,
    evaluate_page,
    finetune,
    finetune_page,
    pretrain,
    pretrain_page,
    tokenizer_train,
    tokenizer_train_page,
)
from inscape.studies.study import Study

_BLOOM = "BigScience, 2022 (arXiv 2211.05100)"

COMMANDS: dict[str, Study] = {
    command.name: command
    for command in (
        Study(
            "corpus build",
            "Clean, deduplicate and count text from many sources, as ROOTS was",
            "Laurençon et al., NeurIPS 2022 (arXiv 2303.03915)",
            corpus_build.Config,
            corpus_build.SMOKE,
            corpus_build.asked_for,
            corpus_build.inputs_of,
            corpus_build.run,
            corpus_build_page.figures,
            corpus_build_page.page,
        ),
        Study(
            "tokenizer train",
            "Fit a byte-level BPE to a corpus, and hold it against one for each language",
            _BLOOM,
            tokenizer_train.Config,
            tokenizer_train.SMOKE,
            tokenizer_train.asked_for,
            tokenizer_train.inputs_of,
            tokenizer_train.run,
            tokenizer_train_page.figures,
            tokenizer_train_page.page,
        ),
        Study(
            "pretrain",
            "Train a BLOOM, GPT-2, Llama or GPT-NeoX from scratch, alone or under torchrun",
            _BLOOM,
            pretrain.Config,
            pretrain.SMOKE,
            pretrain.asked_for,
            pretrain.inputs_of,
            pretrain.run,
            pretrain_page.figures,
            pretrain_page.page,
            pretrain.follow,
        ),
        Study(
            "finetune",
            "Multitask prompted finetuning, judged on prompts, languages and tasks that it did not see",
            "Muennighoff et al., ACL 2023 (arXiv 2211.01786)",
            finetune.Config,
            finetune.SMOKE,
            finetune.asked_for,
            finetune.inputs_of,
            finetune.run,
            finetune_page.figures,
            finetune_page.page,
        ),
        Study(
            "evaluate",
            "Bits per byte, choices and translation, with intervals, chance and n-gram baselines",
            _BLOOM,
            evaluate.Config,
            evaluate.SMOKE,
            evaluate.asked_for,
            evaluate.inputs_of,
            evaluate.run,
            evaluate_page.figures,
            evaluate_page.page,
        ),
    )
}

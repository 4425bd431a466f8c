"""Text for training: read, cleaned, counted, and encoded into token shards."""

from inscape.data.corpus.build import build_corpus
from inscape.data.corpus.config import CorpusConfig
from inscape.data.corpus.corpus import Corpus
from inscape.data.corpus.documents import Document, corpus_hash, read_documents, read_rows
from inscape.data.corpus.shards import TokenPart, TokenShards, encode_corpus
from inscape.data.corpus.shared import shared_sources
from inscape.data.corpus.sources import Source, stdlib_source

__all__ = [
    "Corpus",
    "CorpusConfig",
    "Document",
    "Source",
    "TokenPart",
    "TokenShards",
    "build_corpus",
    "corpus_hash",
    "encode_corpus",
    "read_documents",
    "read_rows",
    "shared_sources",
    "stdlib_source",
]

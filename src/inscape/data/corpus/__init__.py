"""Text for training: read, cleaned, counted, and encoded into token shards."""

from inscape.data.corpus.documents import corpus_hash, read_documents

__all__ = ["corpus_hash", "read_documents"]

"""A durable, content-addressed, resumable store of per-token scores for one dataset.

Each store is one directory, ``<root>/<key>/``. The key is a digest of all that the scores depend on: a changed oracle,
template or row never reads old scores, and a changed learning rate always finds them again.

===================  ====================================================================================
``manifest.json``    the identity, the number of rows, the shard size, the columns; written first
``shard-00000.arrow``  the rows ``[0, shard_rows)`` as an Arrow IPC stream, one ``list<float32>`` per column
``shard-00000.json``  the sha256 and the rows of that shard; written after it, so that it confirms a complete file
``complete.json``    the digest over all shard checksums; written last
``texts.parquet``    for display: the prompt of every row and the texts of the scored tokens; optional
``texts.json``       the sha256 and the rows of that file; optional
===================  ====================================================================================

A file appears under its name only when it is complete and synced to disk. A process that dies loses the shard that it
was computing; several processes, of one run or of many, share the work through one lock per shard, outside the store in
``<root>/.locks/<key>/``. The names of a store's models and data in recipes are recorded in
``<root>/.names/<key>.json``, also outside, since the same content has different names in different recipes; the default
root also has the digests of weights that keys were made of (``.digests``). A finished
store holds no time, host, path or process id: its bytes do not depend on interruptions or on the writer, provided that
``compute`` is deterministic (and, for the texts, that the pyarrow version is the same, which is recorded in the file).
"""

from sepo.score_store.catalog import disk_size, find_store, read_names, remove_store, stored, write_names
from sepo.score_store.disk import file_digest
from sepo.score_store.identity import JSON, content_key, default_store_root
from sepo.score_store.shard_format import Scores, ShardRange
from sepo.score_store.store import ScoreStore
from sepo.score_store.texts import AnswerText, RowText, StoredTexts

__all__ = [
    "JSON",
    "AnswerText",
    "RowText",
    "ScoreStore",
    "Scores",
    "ShardRange",
    "StoredTexts",
    "content_key",
    "default_store_root",
    "disk_size",
    "file_digest",
    "find_store",
    "read_names",
    "remove_store",
    "stored",
    "write_names",
]

"""A durable, content-addressed, resumable store of per-token scores for one dataset.

One store is one folder, ``<root>/<key>/``. The key is a digest of everything the scores depend on, so a changed
oracle, template or row can never meet old scores, and a changed learning rate always finds them again.

===================  ====================================================================================
``manifest.json``    the identity, the number of rows, the shard size, the columns; written first
``shard-00000.arrow``  the rows ``[0, shard_rows)`` as an Arrow IPC stream, one ``list<float32>`` per column
``shard-00000.json``  the sha256 and the rows of that shard; written after it, so it vouches for a whole file
``complete.json``    the digest over all shard checksums; written last
``texts.parquet``    for people: every row's prompt and the text of the tokens that its scores are of
``texts.json``       the sha256 and the rows of that file; a store without the two is as good as one with them
===================  ====================================================================================

Every file appears under its name only when it is whole and on the disk. A process that dies loses the shard it was
computing; several processes, of one run or of many, share the work through one lock per shard, kept outside the
folder in ``<root>/.locks/<key>/``. What people call a store's models and data is noted in
``<root>/.names/<key>.json``, outside too, since the same content has other names elsewhere. The finished folder holds
no time, host, path or process id: it is the same bytes however often it was interrupted and whoever wrote it, as long
as ``compute`` itself is deterministic (and, for the texts, pyarrow of one version, which notes it in the file).
"""

from sepo.score_store.catalog import disk_size, find_store, read_names, remove_store, stored, write_names
from sepo.score_store.disk import file_digest
from sepo.score_store.identity import JSON, content_key, default_store_root
from sepo.score_store.shards import Scores, ShardRange
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

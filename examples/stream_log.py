"""A log of sensor readings, answered exactly once each, however often it is read.

The log is a table of SQLite here, as a topic of Kafka is elsewhere: records in order, each with the key of its sensor
and where its steps begin. A consumer that is stopped begins again from its last commit, so records come twice. Their
steps count once, because the store knows how many a sensor's state has seen; and their answers stand once, because the
row of an answer is named by its key and offset.

    python examples/stream_log.py http://localhost:8000 readings.sqlite  # the last answer of each sensor
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys

import lengthwise

TABLES = """
CREATE TABLE IF NOT EXISTS log (position INTEGER PRIMARY KEY, key TEXT, begin INTEGER, steps TEXT);
CREATE TABLE IF NOT EXISTS answers (key TEXT, steps INTEGER, label TEXT, score REAL, PRIMARY KEY (key, steps));
"""


async def consume(log: sqlite3.Connection, streams: lengthwise.KeyedStreams, begin: int = 0) -> None:
    """Reads the log from a position on, and writes each answer."""
    records = log.execute("SELECT key, begin, steps FROM log WHERE position >= ? ORDER BY position", (begin,))
    for key, offset, steps in records.fetchall():
        answer = await streams.push(key, json.loads(steps), offset=offset)
        row = (key, answer.offset, answer.label, answer.score)
        log.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", row)
        log.commit()  # with Kafka, the consumer's commit follows


async def main(url: str, path: str) -> None:
    """Reads the log in a file from its beginning, and prints the last answer of each sensor."""
    log = sqlite3.connect(path)
    log.executescript(TABLES)
    async with lengthwise.AsyncClient(url) as client:
        await consume(log, lengthwise.KeyedStreams(client, lengthwise.SQLiteStates(f"{path}.states")))
    for key, steps, label in log.execute("SELECT key, max(steps), label FROM answers GROUP BY key"):
        print(f"{key}: {label} after {steps} steps")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))

"""The embedding of each customer, updated by new transactions only.

A model without a head answers with a vector. Its state is kept beside the vector, in the row of the customer: a nightly
job sends the transactions of the day, whatever the customer's history was, and writes both in one transaction.

    python examples/stream_customers.py models/customers/1 customers.sqlite  # a model of two values a transaction
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Mapping, Sequence

import numpy as np

import lengthwise

Transactions = Sequence[Sequence[float]]  # `[transactions, features]`
TABLE = """CREATE TABLE IF NOT EXISTS customers (
    customer TEXT PRIMARY KEY, transactions INTEGER, embedding BLOB, state TEXT
)"""


def update(
    customers: sqlite3.Connection, model: lengthwise.Model, new: Mapping[str, Sequence[Sequence[float]]]
) -> None:
    """Updates the rows of the customers that have new transactions."""
    names = [*new]
    rows = dict(customers.execute("SELECT customer, state FROM customers"))
    answers = model.predict([new[name] for name in names], states=[rows.get(name) for name in names], outputs=["state"])
    with customers:
        customers.executemany(
            "INSERT OR REPLACE INTO customers VALUES (?, ?, ?, ?)",
            [
                (name, answer.offset, answer.values.tobytes(), answer.state)
                for name, answer in zip(names, answers, strict=True)
            ],
        )


def nearest(customers: sqlite3.Connection, name: str, count: int = 5) -> list[str]:
    """The customers whose embeddings are nearest to that of one, the nearest first."""
    rows = customers.execute("SELECT customer, embedding FROM customers").fetchall()
    embeddings = {customer: np.frombuffer(embedding, np.float32) for customer, embedding in rows}
    own = embeddings.pop(name)
    return sorted(embeddings, key=lambda other: float(np.linalg.norm(embeddings[other] - own)))[:count]


if __name__ == "__main__":
    with sqlite3.connect(sys.argv[2]) as database:
        database.execute(TABLE)
        update(database, lengthwise.load(sys.argv[1]), {"c-1": [[12.5, 1.0]], "c-2": [[3.0, 0.0], [80.0, 1.0]]})
        print(*nearest(database, "c-1"))

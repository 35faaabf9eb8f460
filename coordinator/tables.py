"""The registry's tables: what the coordinator must remember whatever crashes."""

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

metadata = MetaData()

nodes = Table(
    "node",
    metadata,
    Column("name", String, primary_key=True),
    Column("public_key", LargeBinary, nullable=False),
    Column("flower_id", String, nullable=False, unique=True),  # 64 bits without a sign: no SQLite integer
    Column("revoked", Boolean, nullable=False, default=False),
    Column("ledger_seq", Integer, nullable=False, default=0),
)

rounds = Table(
    "round",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("base", Integer, nullable=False),
    Column("state", String, nullable=False),
    Column("opened", DateTime(timezone=True), nullable=False),
    Column("deadline", DateTime(timezone=True), nullable=False),
)

updates = Table(
    "update",
    metadata,
    Column("key", String, primary_key=True),
    Column("round", ForeignKey("round.number"), nullable=False),
    Column("node", ForeignKey("node.name"), nullable=False),
    Column("base", Integer, nullable=False),
    Column("payload", String, nullable=False),
    Column("norm", Float, nullable=False),
    Column("aggregate", Integer),  # the base whose mean it is in; empty until counted
    UniqueConstraint("round", "node"),
)

refusals = Table(
    "refusal",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("round", Integer, nullable=False),
    Column("node", String, nullable=False),
    Column("code", String, nullable=False),
    Column("reason", String, nullable=False),
)

bases = Table(
    "base",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("round", Integer, nullable=False),
    Column("payload", String, nullable=False),
    Column("master", String, nullable=False),
    Column("memory", String, nullable=False),
    Column("published", Boolean, nullable=False),
)

releases = Table(
    "release",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("manifest", LargeBinary, nullable=False),
    Column("salt", String, nullable=False),
    Column("phase", String, nullable=False),
    Column("wave", Integer, nullable=False),
    Column("since", DateTime(timezone=True), nullable=False),
)

reports = Table(
    "report",
    metadata,
    Column("release", ForeignKey("release.number"), primary_key=True),
    Column("watch", String, primary_key=True),
    Column("node", ForeignKey("node.name"), primary_key=True),
    Column("won", Integer, nullable=False),
    Column("lost", Integer, nullable=False),
)

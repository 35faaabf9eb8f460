"""The registry's tables: what the coordinator must remember whatever crashes."""

from sqlalchemy import (
    BigInteger,
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

schema = Table("schema", metadata, Column("version", Integer, primary_key=True))  # one row: whose tables these are

nodes = Table(
    "node",
    metadata,
    Column("name", String, primary_key=True),
    Column("public_key", LargeBinary, nullable=False),
    Column("flower_key", LargeBinary),  # empty where nodes need no authentication: in a simulation
    Column("flower_id", BigInteger, nullable=False, unique=True),  # Flower's 64 bits, read as signed
    Column("revoked", Boolean, nullable=False, default=False),
    Column("ledger_seq", Integer, nullable=False, default=0),
)

invitations = Table(
    "invitation",
    metadata,
    Column("secret", String, primary_key=True),  # SHA-256 of it
    Column("name", String, nullable=False),
    Column("expires", DateTime(timezone=True), nullable=False),
    Column("used_by", LargeBinary),  # the key that it enrolled
)

nonces = Table(
    "nonce",
    metadata,
    Column("node", ForeignKey("node.name"), primary_key=True),
    Column("nonce", String, primary_key=True),
    Column("expires", DateTime(timezone=True), nullable=False),
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
    Column("paused", Boolean, nullable=False, default=False),
    Column("threshold", String, nullable=False, default=""),
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

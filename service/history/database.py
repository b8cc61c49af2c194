"""The database of the history: opened, known for what it is, and what differs between SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from tapline.service.history.history_errors import HistoryError, SlowQueryError
from tapline.service.history.history_tables import ADDED_COLUMNS, ADDED_TABLES, SCHEMA_VERSION, about, metadata
from tapline.service.log_lines import log

FIRST_VERSION = 1
"""The earliest version that can be brought to this one."""

FILE_NAME = "history.db"
"""Of the default database, in the data directory."""

LOCK_WAIT_SECONDS = 5.0
"""How long a write waits for another process that writes to the same file."""

CONNECT_SECONDS = 5

MIGRATION_WAIT_SECONDS = 1.0
"""How long a migration waits for a table of PostgreSQL that others read: whoever comes after it waits, too."""

_VACUUM_PAGES = 1000
"""Free pages given back at a time, once there are more than so many."""

_STEPS_BETWEEN_LOOKS = 20_000
"""Steps of SQLite's virtual machine between two looks at the clock: some milliseconds."""

_ROWS_IN_A_STATEMENT = (128, 16, 1)
"""Few sizes, so that few statements have to be prepared; the largest has fewer values than SQLite takes, 32,766."""


_MAKING, _DELETING, _COUNTING = 0x7461706C, 0x7461706D, 0x7461706E
"""PostgreSQL's advisory locks: of who makes or migrates the tables, who deletes what is old, and who adds to counts
that are read before."""

_SAMPLED_ROWS = 1000


class Database:
    """One history. Connections are made as they are needed; any thread may ask for one."""

    def __init__(self, place: str, data_dir: Path) -> None:
        """`place`: `sqlite` for the file in `data_dir`, or a URL as SQLAlchemy reads it.

        Raises:
            HistoryError: the URL is none of a database that can be used here.
        """
        try:
            url = sql.make_url(f"sqlite:///{data_dir / FILE_NAME}" if place == "sqlite" else place)
        except ArgumentError:
            raise HistoryError(
                "--history: expected sqlite, none, sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
            ) from None
        self.shown = url.render_as_string(hide_password=True)
        self.is_sqlite = url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            _check_file(url)
        elif url.get_backend_name() != "postgresql":
            raise HistoryError(f"--history: expected SQLite or PostgreSQL, got {url.get_backend_name()}")
        options: dict[str, Any] = {"timeout": LOCK_WAIT_SECONDS} if self.is_sqlite else {}
        if not self.is_sqlite:
            options = {"connect_timeout": CONNECT_SECONDS}
        try:
            self.engine = sql.create_engine(
                url, pool_pre_ping=not self.is_sqlite, connect_args=options, hide_parameters=True
            )
            self.unpooled = sql.create_engine(url, poolclass=sql.NullPool, connect_args=options, hide_parameters=True)
        except (ModuleNotFoundError, NoSuchModuleError):
            raise HistoryError(
                f"--history {self.shown}: its driver is not installed: pip install 'tapline-traffic[postgresql]' and "
                "name it as postgresql+psycopg://"
            ) from None
        for engine in (self.engine, self.unpooled) if self.is_sqlite else ():
            sql.event.listen(engine, "connect", _prepare_sqlite)
            sql.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        self.version = SCHEMA_VERSION
        self.insert = sqlite.insert if self.is_sqlite else postgresql.insert

    def open(self, *, create: bool = True) -> None:
        """See that it is a history of this version. Where there is nothing, make a new one, and bring one of an earlier
        version to this, if asked to `create`; else one of an earlier version is read as it is, without what it lacks.
        No connection stays: whoever asks nothing more has nothing to close.

        Raises:
            HistoryError: it is something else.
            DBAPIError: it cannot be asked just now.
        """
        if not create and self.is_sqlite and not Path(self.engine.url.database or "").exists():
            raise HistoryError(f"there is no history at {self.shown}")
        try:
            version = self._version(create)
        except OperationalError:
            raise
        except DBAPIError as error:
            if not self.is_sqlite:
                raise
            raise HistoryError(f"{self.shown} is not a history: {error.orig}") from None
        if version is not None and FIRST_VERSION <= version <= SCHEMA_VERSION:
            self.version = version
            return
        if version is None:
            raise HistoryError(f"{self.shown} is not a history: it holds other tables")
        raise HistoryError(
            f"{self.shown} is a history of version {version}, and this tapline keeps version {SCHEMA_VERSION}: "
            "use the tapline that made it, or another --history"
        )

    def _version(self, create: bool) -> int | None:
        """The version of what is there, made where nothing is; None where it is something else."""
        with self.unpooled.connect() as connection:
            names = sql.inspect(connection).get_table_names()
            found: int | None = None
            if about.name in names:
                found = connection.execute(sql.select(about.c.schema_version)).scalar()
            if not create or (found is not None and not FIRST_VERSION <= found < SCHEMA_VERSION):
                return found
        if self.is_sqlite and not names:
            self._lasting_pragmas()
        with self.unpooled.begin() as connection:
            if not self.is_sqlite:
                connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_MAKING)))
            names = sql.inspect(connection).get_table_names()
            if not names:
                metadata.create_all(connection)
                connection.execute(sql.insert(about).values(schema_version=SCHEMA_VERSION))
            elif about.name not in names:
                return None
            return self._migrated(connection)

    def _migrated(self, connection: sql.Connection) -> int | None:
        """The version of a history once it is this one's, all in the transaction of `connection`; that of another that
        cannot be brought here. Another service may have made or migrated it a moment ago."""
        found: int | None = connection.execute(sql.select(about.c.schema_version)).scalar()
        if found is None or not FIRST_VERSION <= found < SCHEMA_VERSION:
            return found
        if not self.is_sqlite:
            connection.execute(sql.text(f"SET LOCAL lock_timeout = {round(1000 * MIGRATION_WAIT_SECONDS)}"))
        made: list[sql.Table] = []
        for version in range(found + 1, SCHEMA_VERSION + 1):
            for table in ADDED_TABLES.get(version, ()):
                table.create(connection)
                made.append(table)
            for column in ADDED_COLUMNS.get(version, ()):
                if column.table not in made:
                    kind = column.type.compile(connection.dialect)
                    connection.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {column.name} {kind}")
        connection.execute(sql.update(about).values(schema_version=SCHEMA_VERSION))
        log.info("the history was brought to a new version", place=self.shown, before=found, now=SCHEMA_VERSION)
        return SCHEMA_VERSION

    def _lasting_pragmas(self) -> None:
        """Set what a file of SQLite keeps of its own; outside of transactions, and before the first table."""
        connection = self.unpooled.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.close()
        except sqlite3.Error as error:
            raise OperationalError(None, None, error) from error
        finally:
            connection.close()

    def has(self, table: sql.Table) -> bool:
        """Whether the history that was opened has a table; one of an earlier version lacks some."""
        return not any(table in tables for version, tables in ADDED_TABLES.items() if version > self.version)

    def columns(self, table: sql.Table) -> list[sql.ColumnElement[Any]]:
        """What a query of a table selects: its columns, and NULL by the name of each that the history that was opened
        lacks, being of an earlier version."""
        added = [each for version, columns in ADDED_COLUMNS.items() if version > self.version for each in columns]
        lacking = {each.name for each in added if each.table is table}
        return [sql.null().label(each.name) if each.name in lacking else each for each in table.c]

    def close(self) -> None:
        """Close every connection that is not in use."""
        self.engine.dispose()

    @contextlib.contextmanager
    def reading(self, seconds: float) -> Iterator[sql.Connection]:
        """A connection for questions that take at most so long together.

        Raises:
            SlowQueryError: they took longer.
        """
        until = time.monotonic() + seconds
        try:
            with self.engine.connect() as connection:
                if self.is_sqlite:
                    driver: Any = connection.connection.driver_connection
                    driver.set_progress_handler(lambda: time.monotonic() > until, _STEPS_BETWEEN_LOOKS)
                    try:
                        yield connection
                    finally:
                        driver.set_progress_handler(None, 0)
                else:
                    limit = max(1, round(1000 * seconds))
                    connection.execute(sql.text(f"SET LOCAL statement_timeout = {limit}"))
                    yield connection
        except OperationalError as error:
            if _is_interrupted(error):
                raise SlowQueryError(
                    f"this took longer than {seconds:g} seconds: ask for less time, or for fewer hosts"
                ) from None
            raise

    def insert_rows(self, connection: sql.Connection, table: sql.Table, rows: Sequence[dict[str, Any]]) -> None:
        """Insert rows that all have the same columns, many in a statement.

        SQLite's driver gives Python's lock up for every statement: one for each row would have the writer wait for a
        busy event loop each time. And SQLAlchemy's work on each value, which none here needs, would cost more than the
        database does. To PostgreSQL they are copied.
        """
        if not rows:
            return
        names = list(rows[0])
        columns = f"{table.name} ({', '.join(names)})"
        if not self.is_sqlite:
            driver: Any = connection.connection.driver_connection
            refusal: Any = self.engine.dialect.loaded_dbapi.OperationalError
            try:
                with driver.cursor() as cursor, cursor.copy(f"COPY {columns} FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(tuple([row[name] for name in names]))
            except refusal as error:
                raise OperationalError(None, None, error) from error
            return
        values = f"({', '.join('?' * len(names))})"
        head = f"INSERT INTO {columns} VALUES "
        at = 0
        for size in _ROWS_IN_A_STATEMENT:
            statement = head + ", ".join([values] * size)
            while len(rows) - at >= size:
                some = tuple([row[name] for row in rows[at : at + size] for name in names])
                connection.exec_driver_sql(statement, some)
                at += size

    def all_rows(self, connection: sql.Connection, query: sql.Select[Any]) -> list[dict[str, Any]]:
        """The rows of a query for numbers and texts: from SQLite as one, whose driver else gives Python's lock up for
        each, as above."""
        if not self.is_sqlite:
            return [dict(row) for row in connection.execute(query).mappings()]
        found = query.subquery()
        whole = sql.select(sql.func.json_group_array(sql.func.json_array(*found.c)))
        text = connection.execute(whole).scalar()
        return [dict(zip(found.c.keys(), row, strict=True)) for row in msgspec.json.decode(text or "[]")]

    def used_bytes(self, connection: sql.Connection) -> int:
        """Bytes in use: of SQLite pages less those that are free; of PostgreSQL an estimate by rows and their size, in
        which space that vacuuming has freed does not count."""
        if self.is_sqlite:
            pages, free, size = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar() or 0)
                for name in ("page_count", "freelist_count", "page_size")
            )
            return (pages - free) * size
        return sum(_used_by_table(connection, table) for table in metadata.tables.values() if self.has(table))

    def may_delete(self, connection: sql.Connection) -> bool:
        """Whether what is old may be deleted in this transaction: no other service does now. Two that did would wait
        for each other's rows, crosswise too."""
        if self.is_sqlite:
            return True
        return bool(connection.execute(sql.select(sql.func.pg_try_advisory_xact_lock(_DELETING))).scalar())

    def transaction(self, connection: sql.Connection) -> str | None:
        """What `was_committed` knows this transaction by; None of SQLite, which always says how a commit ended."""
        if self.is_sqlite:
            return None
        return str(connection.execute(sql.text("SELECT pg_current_xact_id()")).scalar())

    def was_committed(self, transaction: str) -> bool:
        """Whether a transaction was, whose end nobody said: the connection broke over its commit.

        Raises:
            OperationalError: it has not ended, or the database cannot be asked just now.
        """
        with self.engine.connect() as connection:
            asked = sql.text("SELECT pg_xact_status(CAST(:it AS xid8))")
            status = connection.execute(asked, {"it": transaction}).scalar()
        if status == "in progress":
            raise OperationalError(None, None, RuntimeError("a transaction of a broken connection has not ended yet"))
        return status == "committed"

    def count_alone(self, connection: sql.Connection) -> None:
        """Wait until no other service adds to counts that it has read; it then waits until this transaction ends."""
        if not self.is_sqlite:
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_COUNTING)))

    def give_back(self) -> None:
        """Make SQLite's file smaller by some pages where many are free. PostgreSQL does so itself."""
        if not self.is_sqlite:
            return
        with self.engine.begin() as connection:
            free = int(connection.exec_driver_sql("PRAGMA freelist_count").scalar() or 0)
            if free > _VACUUM_PAGES:
                connection.exec_driver_sql(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()


def _check_file(url: sql.URL) -> None:
    if not url.database or url.database == ":memory:":
        raise HistoryError("--history: expected a file: sqlite:///FILE, or none to keep nothing")
    folder = Path(url.database).parent
    if not folder.is_dir():
        raise HistoryError(f"--history: {folder} is not a directory")
    if Path(url.database).is_dir():
        raise HistoryError(f"--history: {url.database} is a directory, expected a file")


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy begins them, also those that make tables
    try:
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute("PRAGMA synchronous=NORMAL")  # what is lost with the power is at most the last commits
            cursor.execute("PRAGMA journal_size_limit=67108864")
            cursor.execute("PRAGMA cache_size=-16384")
    except BaseException:
        connection.close()  # it is not in the pool yet
        raise


def _is_interrupted(error: OperationalError) -> bool:
    return "interrupted" in str(error.orig) or type(error.orig).__name__ == "QueryCanceled"


def _used_by_table(connection: sql.Connection, table: sql.Table) -> int:
    """Rows that live, times what one takes, times the share of indexes.

    Rows with numbers are counted by these: statistics come late, and who deletes by them deletes too much.
    """
    found = connection.execute(
        sql.text(
            "SELECT n_live_tup, pg_total_relation_size(relid), pg_relation_size(relid) "
            "FROM pg_stat_user_tables WHERE relname = :name AND schemaname = current_schema()"
        ),
        {"name": table.name},
    ).one_or_none()
    if found is None or not found[2]:
        return 0
    rows = int(found[0])
    if "number" in table.c:
        first, last = connection.execute(sql.select(sql.func.min(table.c.number), sql.func.max(table.c.number))).one()
        rows = last - first + 1 if last is not None else 0
    average = connection.execute(
        sql.text(f"SELECT avg(pg_column_size(t.*)) FROM (SELECT * FROM {table.name} LIMIT {_SAMPLED_ROWS}) t")
    ).scalar()
    return round(rows * (float(average or 0) + 28) * int(found[1]) / int(found[2]))

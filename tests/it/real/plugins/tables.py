"""A SQLite database: a topic for each table; documents in its columns become columns."""

import contextlib
import json
import sqlite3

import pandas as pd


class Handler:
    def configure(self, ctx, config):
        self.ctx = ctx

    def execute(self, path):
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            names = database.execute("select name from sqlite_master where type = 'table' order by name")
            for (name,) in names.fetchall():
                topic = self.ctx.register_topic(name)
                if name == "office_data":
                    cursor = database.execute("select code, data from office_data order by rowid")
                    while rows := cursor.fetchmany(1000):
                        self.ctx.publish(topic, [{"code": code, **json.loads(data)} for code, data in rows])
                else:
                    query = f'select code, prefecture, city, neighborhood, rowid from "{name}" order by rowid'
                    for frame in pd.read_sql_query(query, database, chunksize=50_000):
                        self.ctx.publish(topic, frame)

"""The shape of python-crud-api: Flask under gunicorn with 4 workers, a pool of psycopg2 in each.

As there, a row is found by the text of its key and a created row is read again by its name, without
an index for either. Unlike there, values are bound and a read leaves no transaction open.
"""

import os
import uuid

from flask import Flask, jsonify, request
from psycopg2.extras import RealDictCursor
from psycopg2.pool import ThreadedConnectionPool

COLUMNS = (
    "survived",
    "passengerClass",
    "name",
    "sex",
    "age",
    "siblingsOrSpousesAboard",
    "parentsOrChildrenAboard",
    "fare",
)
NAMES = ", ".join(f'"{name}"' for name in ("uuid", *COLUMNS))
PLACES = ", ".join(["%s"] * (1 + len(COLUMNS)))

app = Flask(__name__)
app.json.sort_keys = False
pool = ThreadedConnectionPool(1, 20, os.environ["DATABASE_URL"])


def ask(statement, values, reads):
    connection = pool.getconn()
    connection.autocommit = True
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(statement, values)
        rows = cursor.fetchall() if reads else None
    pool.putconn(connection)
    return rows


@app.get("/passengers/<uuid:key>")
def read(key):
    rows = ask("SELECT * FROM titanic WHERE uuid::text = %s", [str(key)], True)
    return jsonify(rows[0] if rows else None)


@app.post("/passengers")
def create():
    body = request.get_json()
    values = [str(uuid.uuid4()), *(body[name] for name in COLUMNS)]
    ask(f"INSERT INTO titanic ({NAMES}) VALUES ({PLACES})", values, False)
    rows = ask("SELECT * FROM titanic WHERE name = %s", [body["name"]], True)
    return jsonify(rows[0]), 201

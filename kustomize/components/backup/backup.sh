#!/usr/bin/env bash
# Writes a dump of the database that PG* name to /backup, and deletes dumps older than KEEP_DAYS.
set -euo pipefail
cd /backup
rm -f ./*.part # of a run that was ended
file=passengers-$(date -u +%Y%m%dT%H%M%SZ).dump
pg_dump --format=custom --file="$file.part"
mv "$file.part" "$file"
find . -name 'passengers-*.dump' -mtime "+$KEEP_DAYS" -delete
ls -l "$file"

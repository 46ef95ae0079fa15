#!/usr/bin/env bash
# Writes a dump of the database that PG* name to /backup, and deletes dumps older than KEEP_DAYS.
set -euo pipefail
cd /backup
file=passengers-$(date -u +%Y%m%dT%H%M%SZ).dump
rm -f ./*.part # of a run that was killed
trap 'rm -f "$file.part"' EXIT
pg_dump --format=custom --file="$file.part"
mv "$file.part" "$file"
find . -name 'passengers-*.dump' -mtime "+$KEEP_DAYS" -delete
ls -l "$file"

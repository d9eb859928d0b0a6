#!/bin/sh
# Starts the box that make run shows: the embedded defaults, and a sample workspace over cellgate-data/sample. There are no users, so the box
# prints the link at which the first one is made.
set -eu
umask 077
binary=$1
data=${CELLGATE_DATA:-./cellgate-data}
mkdir -p "$data/sample/docs"
test -e "$data/sample/docs/welcome.txt" || echo "Welcome. This file lies in $data/sample/docs." >"$data/sample/docs/welcome.txt"
cat >"$data/sample.yaml" <<STATE
datasources:
  - {name: disk, driver: local, options: {path: "$(cd "$data/sample" && pwd)"}}
workspaces:
  - slug: docs
    label: Documents
    roots: ["disk:/docs"]
    grants: [{to: "group:/", rights: [read, write]}]
STATE
exec "$binary" serve --data "$data" --state "$data/sample.yaml"

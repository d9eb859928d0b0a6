#!/bin/sh
# Starts the box that make run shows: the embedded defaults, and a sample workspace over cellgate-data-sample, beside the data folder. There are no
# users, so the box prints the link at which the first one is made.
set -eu
umask 077
binary=$1
data=${CELLGATE_DATA:-./cellgate-data}
sample=${data%/}-sample
mkdir -p "$data" "$sample/docs"
test -e "$sample/docs/welcome.txt" || echo "Welcome. This file lies in $sample/docs." >"$sample/docs/welcome.txt"
cat >"$data/sample.yaml" <<STATE
datasources:
  - {name: sample, driver: local, options: {path: "$(cd "$sample" && pwd)"}}
workspaces:
  - slug: docs
    label: Documents
    roots: ["sample:/docs"]
    grants: [{to: "group:/", rights: [read, write]}]
STATE
exec "$binary" serve --data "$data" --state "$data/sample.yaml"

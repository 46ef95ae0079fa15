#!/bin/sh
# Prints the path of a kustomize that has `edit`, which kubectl's lacks: the installed one, else
# Debian's package of trixie, unpacked into the cache; its static binary runs on Debian 12 as well.
set -eu
command -v kustomize && exit
cache=${XDG_CACHE_HOME:-$HOME/.cache}/passengers
binary=$cache/kustomize/usr/bin/kustomize
if [ ! -x "$binary" ]; then
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/apt-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  # shellcheck disable=SC2016 # a format of apt-get
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep '/debian$' | head -n 1)
  mkdir -p "$work/lists/partial" "$work/archives/partial"
  keys=/usr/share/keyrings/debian-archive-keyring.gpg
  echo "deb [signed-by=$keys] $mirror trixie main" >"$work/sources.list"
  # A configuration of its own, so that the machine's apt stays on its suite.
  cat >"$work/apt.conf" <<END
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$work/lists";
Dir::Cache "$work";
APT::Sandbox::User "root";
END
  export APT_CONFIG="$work/apt.conf"
  (cd "$work" && apt-get -qq update && apt-get -qq download kustomize) >&2
  dpkg -x "$work"/*.deb "$work/root"
  rm -rf "$cache/kustomize" && mv "$work/root" "$cache/kustomize"
fi
echo "$binary"

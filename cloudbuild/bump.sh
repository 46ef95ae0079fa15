#!/bin/sh
# bump.sh TAG OVERLAY...
# Writes the image of image.txt (NAME@DIGEST) as NAME:TAG@DIGEST and its version label into overlays,
# and the `uri` of package.json, under which an API gateway registers the service, into its route.
set -eu
tag=$1
shift
image=$(cat image.txt)
version=$(sed -n 's/^  "version": "\(.*\)",$/\1/p' package.json)-${tag##*-}
uri=$(sed -n 's/^  "uri": "\(.*\)",$/\1/p' package.json)
for overlay in "$@"; do
  (
    cd "kustomize/overlays/$overlay"
    kustomize edit set image "passengers=${image%@*}:$tag@${image#*@}"
    kustomize edit add label --force --without-selector "app.kubernetes.io/version:$version"
  )
done
sed -i "s|^\( *value: \)/[a-z].*|\1${uri:?is missing in package.json}|" kustomize/components/gateway/*.yaml

#!/usr/bin/env bash
# Makes a serving certificate for the webhook's Service by hand, where there is no cert-manager: tls.crt and tls.key in
# this folder (or the one named). With --apply it also hands both to the cluster of the current kubectl context: the
# Secret ecr-injector-tls, to be served by --tls-secret=ecr-injector-tls, and the caBundle of the registration. By default
# none of this is needed: docs/certificates.md.
set -euo pipefail

usage() {
  echo "usage: certs/generate.sh [--apply] [--days N] [FOLDER]" >&2
  exit 2
}

apply=no days=365 folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
while (($#)); do
  case $1 in
    --apply) apply=yes ;;
    --days) [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || usage; days=$2; shift ;;
    -*) usage ;;
    *) folder=$1 ;;
  esac
  shift
done

namespace=ecr-injector
name="ecr-injector.$namespace.svc"
command -v openssl >/dev/null || { echo "certs/generate.sh: openssl is needed" >&2; exit 1; }
if [[ -e "$folder/tls.key" ]]; then
  echo "certs/generate.sh: $folder/tls.key is there already and is kept; remove it to make a new one" >&2
  exit 1
fi
mkdir -p "$folder"
(
  umask 077
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days "$days" \
    -subj "/CN=$name" -addext "subjectAltName=DNS:$name" -addext "extendedKeyUsage=serverAuth" \
    -keyout "$folder/tls.key" -out "$folder/tls.crt" 2>/dev/null
)
echo "made $folder/tls.crt and $folder/tls.key for $name, good for $days days"

if [[ $apply == yes ]]; then
  kubectl -n "$namespace" create secret tls ecr-injector-tls --cert "$folder/tls.crt" --key "$folder/tls.key" \
    --dry-run=client -o yaml | kubectl apply -f -
  bundle=$(openssl base64 -A -in "$folder/tls.crt")
  kubectl patch mutatingwebhookconfiguration zz-ecr-injector --type json -p "[
    {\"op\": \"add\", \"path\": \"/webhooks/0/clientConfig/caBundle\", \"value\": \"$bundle\"},
    {\"op\": \"add\", \"path\": \"/webhooks/1/clientConfig/caBundle\", \"value\": \"$bundle\"}]"
fi

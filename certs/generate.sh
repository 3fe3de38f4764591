#!/usr/bin/env bash
# Makes an authority and, under it, the webhook's serving certificate, where there is no cert-manager: for development and
# for clusters without a network. Run again it renews the certificate under the same authority. certs/README.md.
set -euo pipefail

usage() {
  cat >&2 <<'USAGE'
usage: certs/generate.sh [OPTION]… [FOLDER]

  --namespace NAMESPACE  where the release is (ecr-injector)
  --name NAME            what its Service is called, which is the release's full name (ecr-injector)
  --days DAYS            how long the certificate is good for (365)
  --ca-days DAYS         how long an authority that is made is good for (3650)
  --secret NAME          the Secret that --apply writes (NAME-tls)
  --apply                writes the Secret and the registration's caBundle, in the cluster of kubectl's current context

FOLDER, by default that of this script, gets ca.crt and ca.key once, and tls.crt and tls.key each time.
USAGE
  exit 2
}

fail() {
  echo "certs/generate.sh: $*" >&2
  exit 1
}

namespace=ecr-injector name=ecr-injector secret="" days=365 ca_days=3650 apply=no
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
value() { # what it has to look like, option, value
  [[ "${3:-}" =~ ^$1$ ]] || { echo "certs/generate.sh: $2 can't be '${3:-}'" >&2; usage; }
}
label='[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?' fullname='[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?' number='[1-9][0-9]{0,4}'
while (($#)); do
  case $1 in
    --namespace) value "$label" "$@"; namespace=$2; shift ;;
    --name) value "$fullname" "$@"; name=$2; shift ;;
    --secret) value '[a-z0-9]([-.a-z0-9]*[a-z0-9])?' "$@"; secret=$2; shift ;;
    --days) value "$number" "$@"; days=$2; shift ;;
    --ca-days) value "$number" "$@"; ca_days=$2; shift ;;
    --apply) apply=yes ;;
    -*) echo "certs/generate.sh: there is no option $1" >&2; usage ;;
    *) folder=$1 ;;
  esac
  shift
done
secret=${secret:-$name-tls} registration=zz-$name host=$name.$namespace.svc
ca=$folder/ca.crt ca_key=$folder/ca.key

command -v openssl >/dev/null || fail "openssl is needed: install it"
[[ $apply == no ]] || command -v kubectl >/dev/null ||
  fail "kubectl is needed for --apply: install it, or leave --apply out and take the files to the cluster yourself"
mkdir -p "$folder" || fail "making the folder $folder failed: name another"
work=$(mktemp -d "$folder/.new.XXXXXX") || fail "writing to $folder failed: name another folder"
trap 'rm -rf "$work"' EXIT
umask 077

run_openssl() { # what it is for, arguments
  openssl "${@:2}" 2>"$work/error" || fail "$1 failed; openssl $2 said: $(tail -n 3 "$work/error")"
}
new_key() { run_openssl "making a key" genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out "$1"; }
public_key() { openssl pkey -in "$1" -pubout 2>/dev/null; }

if [[ ! -e $ca && ! -e $ca_key ]]; then
  new_key "$work/ca.key"
  cat >"$work/ca.conf" <<CONF
[req]
distinguished_name = subject
x509_extensions = authority
prompt = no
[subject]
CN = $name CA
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
CONF
  run_openssl "signing the authority" req -new -x509 -sha256 -config "$work/ca.conf" -key "$work/ca.key" \
    -days "$ca_days" -out "$work/ca.crt"
  mv "$work/ca.key" "$ca_key"
  mv "$work/ca.crt" "$ca"
  echo "made the authority $ca, good for $ca_days days; keep $ca_key to yourself"
fi

# An authority that is there is never written to.
[[ -r $ca && -r $ca_key ]] ||
  fail "of $ca and $ca_key one can't be read: put both there, or remove both to make a new authority"
[[ "$(openssl x509 -in "$ca" -noout -pubkey 2>/dev/null)" == "$(public_key "$ca_key")" && "$(public_key "$ca_key")" ]] ||
  fail "$ca_key is not the key of $ca: put the two that belong together there, or remove both to make a new authority"
end=$(openssl x509 -in "$ca" -noout -enddate | cut -d= -f2)
openssl x509 -in "$ca" -noout -checkend $((days * 86400)) >/dev/null ||
  fail "the authority $ca is good until $end, less than $days days:" \
    "give fewer --days, or replace the authority as certs/README.md says"

new_key "$work/tls.key"
cat >"$work/tls.conf" <<CONF
[req]
distinguished_name = subject
prompt = no
[subject]
CN = $name
[serving]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:$host
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
CONF
run_openssl "asking for the certificate" req -new -sha256 -config "$work/tls.conf" -key "$work/tls.key" -out "$work/tls.csr"
run_openssl "signing the certificate" x509 -req -sha256 -in "$work/tls.csr" -CA "$ca" -CAkey "$ca_key" \
  -set_serial "0x$(openssl rand -hex 16)" -days "$days" -extfile "$work/tls.conf" -extensions serving -out "$work/tls.crt"
run_openssl "checking the certificate against $ca" verify -purpose sslserver -CAfile "$ca" "$work/tls.crt" >/dev/null
mv "$work/tls.key" "$folder/tls.key"
mv "$work/tls.crt" "$folder/tls.crt"
echo "made $folder/tls.crt and tls.key for $host, good for $days days"
[[ $apply == yes ]] || exit 0

run_kubectl() { # what it is for, what to do about it, arguments
  kubectl "${@:3}" 2>"$work/error" || fail "$1 failed: $(tail -n 3 "$work/error"); $2"
}
# The trust first: what is served is never ahead of it. Applied by the server, for kubectl's own apply would leave a copy of
# the key in an annotation.
entries=$(run_kubectl "reading the registration $registration" \
  "install the release $name first (nothing was written to the cluster), or name it with --name" \
  get mutatingwebhookconfiguration "$registration" -o 'jsonpath={range .webhooks[*]}x{end}')
bundle=$(openssl base64 -A -in "$ca")
operations=""
for ((entry = 0; entry < ${#entries}; entry++)); do
  operations+=",{\"op\": \"add\", \"path\": \"/webhooks/$entry/clientConfig/caBundle\", \"value\": \"$bundle\"}"
done
run_kubectl "setting the caBundle of $registration" "you need the right to patch it" \
  patch mutatingwebhookconfiguration "$registration" --type json --patch "[${operations#,}]"
run_kubectl "making the Secret's manifest" "see that this kubectl runs" \
  -n "$namespace" create secret tls "$secret" --cert "$folder/tls.crt" --key "$folder/tls.key" --dry-run=client -o yaml \
  >"$work/secret.yaml"
run_kubectl "writing the Secret $namespace/$secret" "the namespace has to be there, and you need the right to patch Secrets in it" \
  apply --server-side --force-conflicts --field-manager ecr-injector-certs --filename "$work/secret.yaml"

{{- /* Short enough that -metrics and the like still fit behind it. */ -}}
{{- define "ecr-injector.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "ecr-injector.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- /* A release may have dots in its name, a Service may not. */ -}}
{{- $release := replace "." "-" .Release.Name -}}
{{- if regexMatch "^[0-9]" $release -}}
{{- fail (printf "a Service can't have a name that begins with a digit, such as that of the release, %s: set fullnameOverride" .Release.Name) -}}
{{- end -}}
{{- if contains $name $release -}}
{{- $release | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" $release $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The namespace of ecr-injector. */ -}}
{{- define "ecr-injector.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- /* Configurations are called in the order of their names: this one sorts last, after what rewrites images. */ -}}
{{- define "ecr-injector.registration" -}}
zz-{{ include "ecr-injector.fullname" . }}
{{- end -}}

{{- define "ecr-injector.selectorLabels" -}}
app.kubernetes.io/name: {{ include "ecr-injector.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- /*
app.kubernetes.io/managed-by is not among them: Helm sets it on all that it installs, and what is applied by other means
is not managed by Helm. Pull secrets are known by that label, with another value.
*/ -}}
{{- define "ecr-injector.labels" -}}
{{- $of := dict "root" . "more" dict -}}
{{- include "ecr-injector.labelsWith" $of -}}
{{- end -}}

{{- /* The same with more of them, which win over commonLabels: each key once. (dict "root" . "more" labels) */ -}}
{{- define "ecr-injector.labelsWith" -}}
{{ include "ecr-injector.selectorLabels" .root }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- with include "ecr-injector.both" (list .root.Values.commonLabels .more) }}
{{ . }}
{{- end }}
{{- end -}}

{{- /* The entries of some maps, as YAML; of the same key the last one's, also if it is empty, which merge takes for absent. */ -}}
{{- define "ecr-injector.both" -}}
{{- $all := dict -}}
{{- range . -}}
{{- range $key, $value := . -}}{{- $_ := set $all $key $value -}}{{- end -}}
{{- end -}}
{{- with $all -}}{{- toYaml . -}}{{- end -}}
{{- end -}}

{{- /* name and labels of an object; namespace too if it has one, the release's (true) or another: (list . name namespace [more annotations [more labels]]) */ -}}
{{- define "ecr-injector.metadata" -}}
{{- $root := index . 0 -}}
{{- $annotations := $root.Values.commonAnnotations | default dict -}}
{{- if gt (len .) 3 -}}{{- $annotations = merge (deepCopy (index . 3)) $annotations -}}{{- end -}}
name: {{ index . 1 }}
{{- with index . 2 }}
namespace: {{ ternary (include "ecr-injector.namespace" $root) . (kindIs "bool" .) }}
{{- end }}
{{- $labels := dict -}}
{{- if gt (len .) 4 -}}{{- $labels = index . 4 -}}{{- end }}
labels:
  {{- include "ecr-injector.labelsWith" (dict "root" $root "more" $labels) | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "ecr-injector.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "ecr-injector.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.create is false: serviceAccount.name has to name the account to use" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "ecr-injector.image" -}}
{{- with .Values.image -}}
{{- $registry := dig "imageRegistry" "" ($.Values.global | default dict) | default .registry -}}
{{- $name := ternary (printf "%s/%s" $registry .repository) .repository (ne $registry "") -}}
{{- if .digest -}}
{{- printf "%s@%s" $name .digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Those of a chart around this one may be names alone. */ -}}
{{- define "ecr-injector.imagePullSecrets" -}}
{{- $secrets := list -}}
{{- range concat (dig "imagePullSecrets" list (.Values.global | default dict) | default list) .Values.imagePullSecrets -}}
{{- $secrets = append $secrets (ternary (dict "name" .) . (kindIs "string" .)) -}}
{{- end -}}
{{- with $secrets | uniq -}}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- /* The pull secret, the label and the namespaces: one value each, for the config, the guard, RBAC, the registration and the notes. */ -}}
{{- define "ecr-injector.pullSecret" -}}
{{- dig "secretName" "ecr-pull-secret" .Values.config -}}
{{- end -}}

{{- define "ecr-injector.optInLabel" -}}
{{- dig "optIn" "label" "ecr-injector.dev/inject" .Values.config -}}
{{- end -}}

{{- define "ecr-injector.optInValue" -}}
{{- dig "optIn" "value" "enabled" .Values.config -}}
{{- end -}}

{{- /* As JSON, which is YAML and, with strings in it, CEL. */ -}}
{{- define "ecr-injector.excludeNamespaces" -}}
{{- $named := dig "optIn" "excludeNamespaces" list .Values.config | default list -}}
{{- concat (list "kube-system" "kube-node-lease") $named | uniq | toJson | replace "," ", " -}}
{{- end -}}

{{- define "ecr-injector.excludedNamespaces" -}}
{{- $named := dig "optIn" "excludeNamespaces" list .Values.config | default list -}}
{{- concat (list "kube-system" "kube-node-lease") $named (list (include "ecr-injector.namespace" .)) | uniq | toJson | replace "," ", " -}}
{{- end -}}

{{- define "ecr-injector.caSecret" -}}
{{ include "ecr-injector.fullname" . }}-ca
{{- end -}}

{{- /* The Secret of the key that seals the states of pull secrets. */ -}}
{{- define "ecr-injector.stateKeySecret" -}}
{{ include "ecr-injector.fullname" . }}-state-key
{{- end -}}

{{- /* The Secret that is served, if we don't make the certificate ourselves. */ -}}
{{- define "ecr-injector.tlsSecret" -}}
{{- if eq .Values.certificates.mode "secret" -}}
{{- required "certificates.mode is secret: certificates.secretName has to name the Secret" .Values.certificates.secretName -}}
{{- else if eq .Values.certificates.mode "cert-manager" -}}
{{ include "ecr-injector.fullname" . }}-tls
{{- end -}}
{{- end -}}

{{- define "ecr-injector.host" -}}
{{ include "ecr-injector.fullname" . }}.{{ include "ecr-injector.namespace" . }}.svc
{{- end -}}

{{- /* Policies belong to the whole cluster: those of a release with another name have it in theirs. (list . name) */ -}}
{{- define "ecr-injector.policy" -}}
{{- $fullname := include "ecr-injector.fullname" (index . 0) -}}
{{- if eq $fullname "ecr-injector" -}}
{{ index . 1 }}.ecr-injector.dev
{{- else -}}
{{ index . 1 }}.{{ $fullname }}.ecr-injector.dev
{{- end -}}
{{- end -}}

{{- define "ecr-injector.terminationGracePeriod" -}}
{{- /* Requests under way get 10 s after the delay, background work 10 s, the last traces 3 s. */ -}}
{{- add (int .Values.shutdownDelay) 25 -}}
{{- end -}}

{{- /* What both entries of the registration have. */ -}}
{{- define "ecr-injector.selectors" -}}
namespaceSelector:
  matchLabels:
    {{ include "ecr-injector.optInLabel" . | quote }}: {{ include "ecr-injector.optInValue" . | quote }}
    {{- with omit (.Values.webhook.namespaceSelector.matchLabels | default dict) (include "ecr-injector.optInLabel" .) }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  # Never the cluster's own Pods, nor ours, even if someone labels these namespaces: a webhook that is down must
  # not be in the way of what brings it up again.
  matchExpressions:
    - key: kubernetes.io/metadata.name
      operator: NotIn
      values: {{ include "ecr-injector.excludedNamespaces" . }}
    {{- with .Values.webhook.namespaceSelector.matchExpressions }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- with .Values.webhook.objectSelector }}
objectSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "ecr-injector.client" -}}
clientConfig:
  service:
    namespace: {{ include "ecr-injector.namespace" . }}
    name: {{ include "ecr-injector.fullname" . }}
    path: /mutate
    port: {{ .Values.service.port }}
{{- end -}}

{{- /* Whether the API server can tell whose images are none of ours: where docker.io is an alias, one that names no host may be. */ -}}
{{- define "ecr-injector.passesOver" -}}
{{- $passes := .Values.matchConditions.enabled -}}
{{- range dig "aliases" list .Values.config | default list -}}
{{- if eq .host "docker.io" -}}{{- $passes = false -}}{{- end -}}
{{- end -}}
{{- if $passes -}}yes{{- end -}}
{{- end -}}

{{- /* A host that merely looks like one of ours is no harm: we decide by the whole of it. One that we would know must never be missed. */ -}}
{{- define "ecr-injector.matchConditions" -}}
{{- if include "ecr-injector.passesOver" . }}
- name: names-an-ecr-image
  expression: >-
    (object.spec.?containers.orValue([]).map(c, c.?image.orValue(""))
    + object.spec.?initContainers.orValue([]).map(c, c.?image.orValue(""))
    + object.spec.?ephemeralContainers.orValue([]).map(c, c.?image.orValue(""))
    + object.spec.?volumes.orValue([]).map(v, v.?image.?reference.orValue("")))
    .exists(i, i.contains(".dkr.ecr") || i.contains(".dkr-ecr")
    {{- range dig "aliases" list .Values.config | default list }}
    || i.startsWith("{{ .host }}/")
    {{- end }}
    {{- if dig "publicEcr" false .Values.config }}
    || i.startsWith("public.ecr.aws/") || i.startsWith("public.ecr.aws:")
    || i.startsWith("ecr-public.aws.com/") || i.startsWith("ecr-public.aws.com:")
    {{- end -}}
    )
{{- end }}
{{- with .Values.matchConditions.extra }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* What every Pod of ours has, so that *restricted* Pod Security takes it. */ -}}
{{- define "ecr-injector.podSecurity" -}}
{{- $ids := dict "runAsUser" 65532 "runAsGroup" 65532 "fsGroup" 65532 -}}
{{- $default := dict "runAsNonRoot" true "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- if not .Values.openshift -}}{{- $default = merge $default $ids -}}{{- end -}}
securityContext:
  {{- include "ecr-injector.both" (list $default .Values.podSecurityContext) | nindent 2 }}
{{- end -}}

{{- define "ecr-injector.containerSecurity" -}}
{{- $default := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) -}}
securityContext:
  {{- include "ecr-injector.both" (list $default .Values.containerSecurityContext) | nindent 2 }}
{{- end -}}

{{- /* Families of addresses of a Service. */ -}}
{{- define "ecr-injector.ipFamilies" -}}
{{- with .Values.service.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.service.ipFamilies }}
ipFamilies:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* What both kinds of monitors have: metadata (list . values) and the scrape (values). */ -}}
{{- define "ecr-injector.monitorMetadata" -}}
{{- $monitor := index . 1 -}}
{{- include "ecr-injector.metadata" (list (index . 0) (include "ecr-injector.fullname" (index . 0)) (default true $monitor.namespace) dict $monitor.labels) -}}
{{- end -}}

{{- define "ecr-injector.scrape" -}}
- port: admin
  path: /metrics
  interval: {{ .interval }}
  {{- with .scrapeTimeout }}
  scrapeTimeout: {{ . }}
  {{- end }}
  {{- with .relabelings }}
  relabelings:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .metricRelabelings }}
  metricRelabelings:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- /* A monitor in another namespace has to be told where the Pods are: (list . values) */ -}}
{{- define "ecr-injector.monitored" -}}
{{- with (index . 1).namespace }}
namespaceSelector:
  matchNames: [{{ include "ecr-injector.namespace" (index $ 0) }}]
{{- end }}
{{- end -}}

{{- /* Which nodes. */ -}}
{{- define "ecr-injector.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /*
Where helm test makes its Pod: not where the release is, for nobody is served there. Helm removes a namespace of that name before and
after, whoever made it, so it is one that nobody else has.
*/ -}}
{{- define "ecr-injector.testNamespace" -}}
{{- if eq .Values.test.namespace (include "ecr-injector.namespace" .) -}}
{{- fail "test.namespace is the release's own namespace, where no Pod is served: name one that is opted in, or none" -}}
{{- else if .Values.test.namespace -}}
{{- .Values.test.namespace -}}
{{- else -}}
{{- printf "%s-test-%s" (include "ecr-injector.fullname" . | trunc 48) (printf "%s/%s" (include "ecr-injector.namespace" .) .Release.Name | sha256sum | trunc 8) -}}
{{- end -}}
{{- end -}}

{{- /* The one source of AWS credentials that may be used, or nothing: a role by IRSA is expected to be that role. */ -}}
{{- define "ecr-injector.expectedCredentials" -}}
{{- $expected := default (ternary "web_identity" "any" (ne .Values.aws.roleArn "")) .Values.aws.expectCredentials -}}
{{- if ne $expected "any" }}{{ $expected }}{{ end -}}
{{- end -}}

{{- /* An image of a registry that our credentials are likely to open. Any of the right region does: nothing is pulled. */ -}}
{{- define "ecr-injector.testImage" -}}
{{- if .Values.test.image -}}
{{- .Values.test.image -}}
{{- else if and (eq .Values.mode "policy") (dig "prewarm" list .Values.config) -}}
{{- /* No admission reports the registry: it has to be one that every namespace gets. */ -}}
{{- printf "%s/probe" (first .Values.config.prewarm) -}}
{{- else -}}
{{- $allow := dig "allow" dict .Values.config | default dict -}}
{{- $account := first (concat ($allow.accounts | default list) (regexFindAll "[0-9]{12}" .Values.aws.roleArn 1) (list "123456789012")) -}}
{{- $region := first (concat ($allow.regions | default list) (without (list .Values.aws.region) "") (list "us-east-1")) -}}
{{- $suffix := "amazonaws.com" -}}
{{- range $prefix, $its := dict "cn-" "amazonaws.com.cn" "eusc-" "amazonaws.eu" "us-iso-" "c2s.ic.gov" "us-isob-" "sc2s.sgov.gov" "eu-isoe-" "cloud.adc-e.uk" "us-isof-" "csp.hci.ic.gov" -}}
{{- if hasPrefix $prefix $region -}}{{- $suffix = $its -}}{{- end -}}
{{- end -}}
{{- printf "%s.dkr.ecr.%s.%s/probe" $account $region $suffix -}}
{{- end -}}
{{- end -}}

{{- /* Whether the leader notices Pods that lack the pull secret. */ -}}
{{- define "ecr-injector.noticesMissed" -}}
{{- $refresh := dig "refresh" dict .Values.config | default dict -}}
{{- if $refresh.noticeMissed -}}yes{{- end -}}
{{- end -}}

{{- /* Whether the API server calls the webhook. */ -}}
{{- define "ecr-injector.hasWebhook" -}}
{{- if ne .Values.mode "policy" -}}yes{{- end -}}
{{- end -}}

{{- /*
Whether an image `i` is in a registry that gets credentials, in CEL: what src/registry and config.aliases, publicEcr and allow say. Of
the last line no space may be left, for what is put behind it.
*/ -}}
{{- define "ecr-injector.imageCondition" -}}
{{- $allow := dig "allow" dict .Values.config | default dict -}}
{{- $accounts := $allow.accounts | default list -}}
{{- $regions := $allow.regions | default list -}}
{{- /* What costs least comes first: the budget is that of all images of a Pod together. */ -}}
(
{{- with $accounts }}
i.matches("^(?:{{ join "|" . }})[.]") &&
{{- end }}
{{- with $regions }}
i.matches("^[0-9]{12}[.]dkr[.-]ecr(?:-fips)?[.](?:{{ join "|" . }})[.]") &&
{{- end }}
{{ include "ecr-injector.privateImage" . }})
{{- range dig "aliases" list .Values.config | default list }}
{{- $account := regexFind "^[0-9]{12}" .registry }}
{{- $region := regexReplaceAll "^[0-9]{12}[.]dkr[.-]ecr(?:-fips)?[.]([^.]+)[.].*$" .registry "${1}" }}
{{- /* References to the old name of Docker Hub are read as the new one, so an alias of the old one is never met. */ -}}
{{- if and (or (not $accounts) (has $account $accounts)) (or (not $regions) (has $region $regions)) (ne .host "index.docker.io") }}
|| ({{ if eq .host "docker.io" }}{{ include "ecr-injector.dockerHubImage" $ }}{{ else }}i.startsWith("{{ .host }}/") && {{ include "ecr-injector.imageOfHost" $ | replace "HOST" (replace "." "[.]" .host) }}{{ end }})
{{- end }}
{{- end }}
{{- if dig "publicEcr" false .Values.config }}
|| ({{ include "ecr-injector.publicImage" . }})
{{- end }}
{{- end -}}

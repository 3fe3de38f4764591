{{- /* The alerts of files/alerts.yaml that are enabled, for this release, as a list; nothing if there is none. */ -}}
{{- define "ecr-injector.alerts" -}}
{{- $namespace := include "ecr-injector.namespace" . -}}
{{- $fullname := include "ecr-injector.fullname" . -}}
{{- $conditions := dict "selfManaged" (eq .Values.certificates.mode "self-managed") "guard" .Values.guard.enabled -}}
{{- $runbooks := .Values.prometheusRule.runbookUrl -}}
{{- $replace := dict
    "SCOPE" (printf "namespace=%q" $namespace)
    "JOB" (printf "(%s/)?%s(-metrics)?" (default $namespace .Values.metrics.podMonitor.namespace) $fullname)
    "TIMEOUT" (toString .Values.webhook.timeoutSeconds) -}}
{{- range (.Files.Get "files/alerts.yaml" | fromYaml).rules -}}
{{- $rule := . -}}
{{- $set := get $.Values.prometheusRule.rules .alert | default dict -}}
{{- $is_enabled := ternary $set.enabled true (hasKey $set "enabled") -}}
{{- if .when -}}{{- $is_enabled = and $is_enabled (get $conditions .when) -}}{{- end -}}
{{- if $is_enabled -}}
{{- if and (hasKey $set "threshold") (not (contains "THRESHOLD" .expr)) -}}
{{- fail (printf "prometheusRule.rules.%s.threshold: this alert has no threshold; leave it out" .alert) -}}
{{- end -}}
{{- $threshold := ternary $set.threshold .threshold (hasKey $set "threshold") -}}
{{- if and .thresholds (not (hasKey $set "threshold")) -}}
{{- $threshold = include "ecr-injector.certificateThreshold" (list $ .thresholds) -}}
{{- end -}}
{{- $expr := .expr -}}
{{- $description := .description -}}
{{- range $word, $text := set (deepCopy $replace) "THRESHOLD" (include "ecr-injector.number" $threshold) -}}
{{- $expr = replace $word $text $expr -}}
{{- $description = replace $word $text $description -}}
{{- end }}
- alert: {{ .alert }}
  expr: |-
    {{- $expr | nindent 4 }}
  for: {{ default .for $set.for }}
  labels:
    severity: {{ default .severity $set.severity }}
  annotations:
    summary: {{ .summary | toRawJson }}
    description: {{ $description | toRawJson }}
    runbook_url: {{ printf "%s#%s" $runbooks (lower .alert) | toRawJson }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A number as PromQL reads it. Helm has large ones as floats, and writes them as 1.2096e+06. */ -}}
{{- define "ecr-injector.number" -}}
{{- if kindIs "string" . -}}{{- . -}}
{{- else if eq (floor .) (float64 .) -}}{{- printf "%d" (int64 .) -}}
{{- else -}}{{- . -}}
{{- end -}}
{{- end -}}

{{- /* How many seconds before its end the serving certificate should have been renewed: (list . thresholds) */ -}}
{{- define "ecr-injector.certificateThreshold" -}}
{{- $root := index . 0 -}}
{{- $mode := $root.Values.certificates.mode -}}
{{- if eq $mode "cert-manager" -}}
{{- $seconds := 0 -}}
{{- range regexFindAll "[0-9]+[hms]" $root.Values.certificates.certManager.renewBefore -1 -}}
{{- $unit := trimAll "0123456789" . -}}
{{- $seconds = add $seconds (mul (atoi (trimSuffix $unit .)) (get (dict "h" 3600 "m" 60 "s" 1) $unit)) -}}
{{- end -}}
{{- div $seconds 2 -}}
{{- else -}}
{{- include "ecr-injector.number" (get (index . 1) $mode) -}}
{{- end -}}
{{- end -}}

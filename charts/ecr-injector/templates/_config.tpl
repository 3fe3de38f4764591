{{- /*
What the schema of the values can't check of the configuration: two values that don't fit each other, and bounds of
durations. The process would refuse each of them, and not start. It has these checks in src/config.
*/ -}}

{{- /* Seconds of a duration such as 1h30m. */ -}}
{{- define "ecr-injector.seconds" -}}
{{- $text := . -}}
{{- $seconds := 0 -}}
{{- range $unit, $size := dict "d" 86400 "h" 3600 "m" 60 "s" 1 -}}
{{- with regexFind (printf "[0-9]+%s" $unit) $text -}}
{{- $seconds = add $seconds (mul $size (trimSuffix $unit . | atoi)) -}}
{{- end -}}
{{- end -}}
{{- $seconds -}}
{{- end -}}

{{- /* (list path duration least most bounds) */ -}}
{{- define "ecr-injector.checkDuration" -}}
{{- $seconds := include "ecr-injector.seconds" (index . 1) | atoi -}}
{{- if or (lt $seconds (index . 2)) (gt $seconds (index . 3)) -}}
{{- fail (printf "config.%s: expected %s, got %q" (index . 0) (index . 4) (index . 1)) -}}
{{- end -}}
{{- end -}}

{{- /* A text that may contain {cluster}, with its length: (list path text cluster [least most]) */ -}}
{{- define "ecr-injector.checkTemplate" -}}
{{- $text := index . 1 -}}
{{- if and (contains "{cluster}" $text) (not (index . 2)) -}}
{{- fail (printf "config.%s: {cluster} needs config.clusterName" (index . 0)) -}}
{{- end -}}
{{- if gt (len .) 3 -}}
{{- $length := replace "{cluster}" (index . 2) $text | len -}}
{{- if or (lt $length (index . 3)) (gt $length (index . 4)) -}}
{{- fail (printf "config.%s: expected %d to %d characters, got %d" (index . 0) (index . 3) (index . 4) $length) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The options of AssumeRole: (list path options cluster) */ -}}
{{- define "ecr-injector.checkRole" -}}
{{- $path := index . 0 -}}
{{- $cluster := index . 2 -}}
{{- with index . 1 -}}
{{- with .roleArn -}}
{{- include "ecr-injector.checkTemplate" (list (printf "%s.roleArn" $path) (replace "{namespace}" "n" .) $cluster 1 2048) -}}
{{- end -}}
{{- with .externalId -}}
{{- include "ecr-injector.checkTemplate" (list (printf "%s.externalId" $path) . $cluster 2 1224) -}}
{{- end -}}
{{- with .sessionName -}}
{{- include "ecr-injector.checkTemplate" (list (printf "%s.sessionName" $path) . $cluster) -}}
{{- end -}}
{{- range $key, $value := .tags -}}
{{- include "ecr-injector.checkTemplate" (list (printf "%s.tags.%s" $path $key) $value $cluster) -}}
{{- end -}}
{{- with .duration -}}
{{- include "ecr-injector.checkDuration" (list (printf "%s.duration" $path) . 900 43200 "15m to 12h") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "ecr-injector.checkConfig" -}}
{{- $config := .Values.config -}}
{{- $cluster := $config.clusterName | default "" -}}
{{- $aliases := list -}}
{{- range $at, $alias := $config.aliases -}}
{{- if has $alias.host $aliases -}}
{{- fail (printf "config.aliases[%d].host: %q is named twice" $at $alias.host) -}}
{{- end -}}
{{- $aliases = append $aliases $alias.host -}}
{{- end -}}
{{- $limits := $config.limits | default dict -}}
{{- $perPod := $limits.registriesPerPod | default 16 | int -}}
{{- $perSecret := $limits.registriesPerSecret | default 64 | int -}}
{{- if gt $perPod $perSecret -}}
{{- fail (printf "config.limits: registriesPerPod (%d) can't exceed registriesPerSecret (%d)" $perPod $perSecret) -}}
{{- end -}}
{{- range $at, $rule := $config.identities -}}
{{- include "ecr-injector.checkRole" (list (printf "identities[%d].assumeRole" $at) $rule.assumeRole $cluster) -}}
{{- end -}}
{{- include "ecr-injector.checkRole" (list "namespaceRoles" $config.namespaceRoles $cluster) -}}
{{- $hosts := $config.prewarm | default list -}}
{{- if gt (len $hosts) $perSecret -}}
{{- fail (printf "config.prewarm: expected at most %d hosts (config.limits.registriesPerSecret), got %d" $perSecret (len $hosts)) -}}
{{- end -}}
{{- if ne (len $hosts) (uniq $hosts | len) -}}
{{- fail "config.prewarm: a host is named twice" -}}
{{- end -}}
{{- range $at, $host := $hosts -}}
{{- if regexMatch "^(public\\.ecr\\.aws|ecr-public\\.aws\\.com)(:[0-9]+)?$" $host -}}
{{- if not $config.publicEcr -}}
{{- fail (printf "config.prewarm[%d]: %q needs config.publicEcr: true" $at $host) -}}
{{- end -}}
{{- else if not (or (has $host $aliases) (and (regexMatch (include "ecr-injector.registryPattern" $) $host) (not (regexMatch (include "ecr-injector.noRegistryPattern" $) $host)))) -}}
{{- fail (printf "config.prewarm[%d]: expected the host of an ECR registry or of an alias, got %q" $at $host) -}}
{{- end -}}
{{- end -}}
{{- $refresh := $config.refresh | default dict -}}
{{- $cap := $refresh.sessionCap | default "auto" -}}
{{- if not (has $cap (list "auto" "session" "none")) -}}
{{- include "ecr-injector.checkDuration" (list "refresh.sessionCap" $cap 900 4294967295 "at least 15m") -}}
{{- end -}}
{{- with $refresh.forgetAfter -}}
{{- if ne . "never" -}}
{{- include "ecr-injector.checkDuration" (list "refresh.forgetAfter" . 86400 315360000 "1d to 3650d, or never") -}}
{{- end -}}
{{- end -}}
{{- end -}}

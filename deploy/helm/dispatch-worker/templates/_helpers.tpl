{{- define "dispatch-worker.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- /* At most 52 characters: suffixes of the chart's and of the controllers' names follow. */ -}}
{{- define "dispatch-worker.fullname" -}}
{{- $name := include "dispatch-worker.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "dispatch-worker.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dispatch-worker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "dispatch-worker.labels" -}}
{{- $chart := printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" -}}
{{- $own := dict "helm.sh/chart" $chart "app.kubernetes.io/managed-by" .Release.Service -}}
{{- $_ := set $own "app.kubernetes.io/version" (.Chart.AppVersion | replace "+" "_" | trunc 63) -}}
{{- $selector := include "dispatch-worker.selectorLabels" . | fromYaml -}}
{{- toYaml (merge $selector $own .Values.commonLabels) -}}
{{- end -}}

{{- define "dispatch-worker.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "dispatch-worker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "dispatch-worker.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "dispatch-worker.gracePeriod" -}}
{{- $computed := ceil (addf .Values.drainSeconds .Values.terminationGraceMarginSeconds) | int -}}
{{- default $computed .Values.terminationGracePeriodSeconds -}}
{{- end -}}

{{- /* Whether more than one replica may run. */ -}}
{{- define "dispatch-worker.severalReplicas" -}}
{{- if .Values.keda.enabled -}}
{{- if gt (int .Values.keda.maxReplicas) 1 }}true{{ end -}}
{{- else if gt (int .Values.replicaCount) 1 -}}
true
{{- end -}}
{{- end -}}

{{- /* Secrets: given by name, or made here of what is written into the values. */ -}}
{{- define "dispatch-worker.ownSecret" -}}
{{- if or .Values.nomad.token.value .Values.redis.password.value }}true{{ end -}}
{{- end -}}

{{- define "dispatch-worker.nomadTokenSecret" -}}
{{- with .Values.nomad.token -}}
{{- if .existingSecret }}{{ .existingSecret }}{{ else if .value }}{{ include "dispatch-worker.fullname" $ }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "dispatch-worker.redisPasswordSecret" -}}
{{- with .Values.redis.password -}}
{{- if .existingSecret }}{{ .existingSecret }}{{ else if .value }}{{ include "dispatch-worker.fullname" $ }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "dispatch-worker.nomadTokenKey" -}}
{{- ternary .Values.nomad.token.key "nomad-token" (ne .Values.nomad.token.existingSecret "") -}}
{{- end -}}

{{- define "dispatch-worker.redisPasswordKey" -}}
{{- ternary .Values.redis.password.key "redis-password" (ne .Values.redis.password.existingSecret "") -}}
{{- end -}}

{{- /* The Redis URL in parts: {scheme, hosts, ports, service, database, kind, tls}. */ -}}
{{- define "dispatch-worker.redisParts" -}}
{{- $scheme := regexFind "^[a-z+]+" .Values.redis.url -}}
{{- $rest := trimPrefix (printf "%s://" $scheme) .Values.redis.url -}}
{{- $path := splitList "/" (first (splitList "?" $rest)) -}}
{{- $kind := ternary "sentinel" (ternary "cluster" "standalone" (hasSuffix "+cluster" $scheme)) (hasSuffix "+sentinel" $scheme) -}}
{{- $port := ternary "26379" "6379" (eq $kind "sentinel") -}}
{{- $addresses := list -}}
{{- $ports := list -}}
{{- range splitList "," (first $path) -}}
{{- $own := regexFind ":[0-9]+$" . | trimPrefix ":" | default $port -}}
{{- $addresses = append $addresses (printf "%s:%s" (regexReplaceAll ":[0-9]+$" . "") $own) -}}
{{- $ports = append $ports (int $own) -}}
{{- end -}}
{{- $tail := rest $path -}}
{{- $service := ternary (first $tail) "" (and (eq $kind "sentinel") (gt (len $tail) 0)) -}}
{{- $database := ternary (rest $tail) $tail (eq $kind "sentinel") | first | default "0" -}}
{{- dict "kind" $kind "addresses" $addresses "ports" (uniq $ports) "service" $service "database" $database "tls" (hasPrefix "rediss" $scheme) | toJson -}}
{{- end -}}

{{- /* Port of an http or https URL. */ -}}
{{- define "dispatch-worker.httpPort" -}}
{{- $host := (urlParse .).host -}}
{{- regexFind ":[0-9]+$" $host | trimPrefix ":" | default (ternary "443" "80" (hasPrefix "https://" .)) -}}
{{- end -}}

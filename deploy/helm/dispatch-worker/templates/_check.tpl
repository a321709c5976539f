{{- /* What the schema cannot tell: values that contradict one another. Everything wrong is told at once. */ -}}
{{- define "dispatch-worker.check" -}}
{{- $faults := list -}}
{{- with .Values -}}
{{- if not .nomad.address -}}
{{- $faults = append $faults "nomad.address is not set. Give the agent's address, such as https://nomad.example:4646." -}}
{{- end -}}
{{- if not (or .redis.url .redis.urlSecret.name) -}}
{{- $faults = append $faults "redis.url is not set. Give it without a password, or name a Secret in redis.urlSecret.name." -}}
{{- end -}}
{{- if and .redis.url .redis.urlSecret.name -}}
{{- $faults = append $faults "redis.url and redis.urlSecret.name are both set. Keep one." -}}
{{- end -}}
{{- range $name, $secret := dict "nomad.token" .nomad.token "redis.password" .redis.password -}}
{{- if and $secret.existingSecret $secret.value -}}
{{- $faults = append $faults (printf "%s.existingSecret and %s.value are both set: which one counts would be a guess. Keep the Secret." $name $name) -}}
{{- end -}}
{{- end -}}
{{- if and .redis.tls.existingSecret .redis.url (not (hasPrefix "rediss" .redis.url)) -}}
{{- $faults = append $faults "redis.tls is set, but redis.url asks for no TLS. Begin it with rediss." -}}
{{- end -}}
{{- if and .nomad.tls.existingSecret (not (hasPrefix "https://" .nomad.address)) -}}
{{- $faults = append $faults "nomad.tls is set, but nomad.address is not https://. The token would travel in the clear." -}}
{{- end -}}
{{- range $name, $tls := dict "nomad.tls" .nomad.tls "redis.tls" .redis.tls -}}
{{- if ne (empty $tls.cert) (empty $tls.key) -}}
{{- $faults = append $faults (printf "%s.cert and %s.key belong together. Set both or none." $name $name) -}}
{{- end -}}
{{- if and (or $tls.cert $tls.key) (not $tls.existingSecret) -}}
{{- $faults = append $faults (printf "%s.cert is a key of %s.existingSecret, which is not set." $name $name) -}}
{{- end -}}
{{- end -}}
{{- if and .terminationGracePeriodSeconds (le (float64 .terminationGracePeriodSeconds) (float64 .drainSeconds)) -}}
{{- $faults = append $faults (printf "terminationGracePeriodSeconds (%v) is not longer than drainSeconds (%v): Pods would be killed while they hand over. Leave it unset." .terminationGracePeriodSeconds .drainSeconds) -}}
{{- end -}}
{{- $dispatch := addf (default 6 .settings.WORKER_NOMAD_TIMEOUT_SECONDS) (default 1 .settings.WORKER_BLOCK_SECONDS) -}}
{{- if le (float64 .drainSeconds) $dispatch -}}
{{- $faults = append $faults (printf "drainSeconds (%v) is not longer than a dispatch and a read on their way (%v s). Lengthen it." .drainSeconds $dispatch) -}}
{{- end -}}
{{- if and (gt (len .queue.streams) 1) (not (contains "{stream}" (default "" .settings.WORKER_TOKEN_TEMPLATE))) -}}
{{- $faults = append $faults "queue.streams names several, but settings.WORKER_TOKEN_TEMPLATE lacks {stream}: two streams can hold one entry ID, and Nomad would drop the second message. Set it to {stream}:{message_id}." -}}
{{- end -}}
{{- range .extraEnv -}}
{{- if or (hasKey $.Values.settings .name) (has .name (list "NOMAD_ADDR" "NOMAD_TOKEN" "NOMAD_TOKEN_FILE" "REDIS_URL" "REDIS_PASSWORD_FILE" "WORKER_STREAMS" "WORKER_PREFIX" "WORKER_GROUP" "WORKER_DRAIN_SECONDS" "WORKER_HTTP_ADDR" "WORKER_ALLOW_FILE" "WORKER_NAME")) -}}
{{- $faults = append $faults (printf "extraEnv sets %s, which another value gives: the chart would reckon with that one, the worker with this." .name) -}}
{{- end -}}
{{- end -}}
{{- if and (eq .updateStrategy.type "Recreate") .updateStrategy.rollingUpdate -}}
{{- $faults = append $faults "updateStrategy.type is Recreate, which takes no rollingUpdate. Set updateStrategy.rollingUpdate to null." -}}
{{- end -}}
{{- $names := list -}}
{{- range .queue.streams -}}
{{- if has .name $names -}}
{{- $faults = append $faults (printf "queue.streams names %s twice." .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- if and (contains "+cluster" .redis.url) (ne (len (regexFindAll "\\{[^{}]+\\}" .queue.prefix -1)) 1) -}}
{{- $faults = append $faults "queue.prefix must hold exactly one hash tag, such as {dispatch}, with Redis Cluster." -}}
{{- end -}}
{{- if .keda.enabled -}}
{{- if gt (int .keda.minReplicas) (int .keda.maxReplicas) -}}
{{- $faults = append $faults "keda.minReplicas is above keda.maxReplicas." -}}
{{- end -}}
{{- if ne (empty .keda.address) (empty .keda.kind) -}}
{{- $faults = append $faults "keda.address and keda.kind belong together." -}}
{{- end -}}
{{- if and .redis.urlSecret.name (not .keda.address) -}}
{{- $faults = append $faults "keda.address is not set: KEDA cannot read the address in redis.urlSecret." -}}
{{- end -}}
{{- if and .keda.address (eq .keda.kind "sentinel") (not .keda.sentinelMaster) -}}
{{- $faults = append $faults "keda.sentinelMaster is not set, which keda.kind sentinel needs." -}}
{{- end -}}
{{- $most := default 500 .settings.WORKER_MAX_IN_FLIGHT | int -}}
{{- if ge (int .keda.pendingPerReplica) $most -}}
{{- $faults = append $faults (printf "keda.pendingPerReplica (%v) is not below WORKER_MAX_IN_FLIGHT (%d): replicas would be full before KEDA adds one." .keda.pendingPerReplica $most) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "\n\nThese values do not fit together:\n- %s\n" (join "\n- " $faults)) -}}
{{- end -}}
{{- end -}}

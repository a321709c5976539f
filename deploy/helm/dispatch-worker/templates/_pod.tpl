{{- /* What the worker and the test share: where settings and secrets come from. */ -}}
{{- define "dispatch-worker.environment" -}}
envFrom:
  - configMapRef:
      name: {{ include "dispatch-worker.fullname" . }}
  {{- with .Values.extraEnvFrom }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $environment := list -}}
{{- with .Values.redis.urlSecret -}}
{{- if .name -}}
{{- $reference := dict "name" .name "key" .key -}}
{{- $environment = append $environment (dict "name" "REDIS_URL" "valueFrom" (dict "secretKeyRef" $reference)) -}}
{{- end -}}
{{- end -}}
{{- with concat $environment .Values.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "dispatch-worker.volumeMounts" -}}
- name: files
  mountPath: /etc/dispatch-worker
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "dispatch-worker.volumes" -}}
- name: files
  projected:
    defaultMode: 0440
    sources:
      - configMap:
          name: {{ include "dispatch-worker.fullname" . }}-files
      {{- with include "dispatch-worker.nomadTokenSecret" . }}
      - secret:
          name: {{ . }}
          items:
            - key: {{ include "dispatch-worker.nomadTokenKey" $ }}
              path: nomad/token
      {{- end }}
      {{- with include "dispatch-worker.redisPasswordSecret" . }}
      - secret:
          name: {{ . }}
          items:
            - key: {{ include "dispatch-worker.redisPasswordKey" $ }}
              path: redis/password
      {{- end }}
      {{- range $folder, $tls := dict "nomad" .Values.nomad.tls "redis" .Values.redis.tls }}
      {{- if and $tls.existingSecret (or $tls.ca $tls.cert) }}
      - secret:
          name: {{ $tls.existingSecret }}
          items:
            {{- range $file, $key := dict "ca.crt" $tls.ca "tls.crt" $tls.cert "tls.key" $tls.key }}
            {{- if $key }}
            - key: {{ $key }}
              path: {{ $folder }}/{{ $file }}
            {{- end }}
            {{- end }}
      {{- end }}
      {{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 16Mi
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

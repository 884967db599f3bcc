{{- define "lengthwise.name" -}}
{{- if contains "lengthwise" .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-lengthwise" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "lengthwise.selector" -}}
app.kubernetes.io/name: lengthwise
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "lengthwise.labels" -}}
{{ include "lengthwise.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "lengthwise.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (printf "%s%s" .Chart.AppVersion (ternary "-cuda" "" .Values.gpu.enabled)) }}
{{- end -}}
{{- end -}}

{{- define "lengthwise.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "lengthwise.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{- define "lengthwise.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "lengthwise.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* A number as an option reads it: YAML's large integers are floats here, and would print as 1e+06. */}}
{{- define "lengthwise.setting" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end -}}

{{/* What is on is so by a value of the chart or by the option itself in settings, with extraVolumes for its files. */}}
{{- define "lengthwise.adminPort" -}}
{{ .Values.adminPort | default (default dict .Values.settings).admin_port | default 0 | int }}
{{- end -}}

{{- define "lengthwise.grpcPort" -}}
{{ .Values.grpcPort | default (default dict .Values.settings).grpc_port | default 0 | int }}
{{- end -}}

{{- define "lengthwise.keys" -}}
{{- if or .Values.apiKeys.existingSecret (default dict .Values.settings).api_keys_file }}true{{ end -}}
{{- end -}}

{{- define "lengthwise.tls" -}}
{{- if or .Values.tls.existingSecret (default dict .Values.settings).tls_cert_file }}true{{ end -}}
{{- end -}}

{{- define "lengthwise.mutualTls" -}}
{{- if or .Values.tls.clientCaSecret (default dict .Values.settings).tls_client_ca_file }}true{{ end -}}
{{- end -}}

{{/* Fails where values contradict each other. */}}
{{- define "lengthwise.check" -}}
{{- with .Values.autoscaling -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas: must be at most maxReplicas (%d), got %d" (int .maxReplicas) (int .minReplicas)) -}}
{{- end -}}
{{- end -}}
{{- range $name := list "tls_cert_file" "tls_key_file" "tls_client_ca_file" "api_keys_file" "record" -}}
{{- with get (default dict $.Values.settings) $name -}}
{{- $path := . -}}
{{- $mounted := false -}}
{{- range $.Values.extraVolumeMounts -}}
{{- if hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) (printf "%s/" $path) }}{{ $mounted = true }}{{ end -}}
{{- end -}}
{{- if not $mounted -}}
{{- fail (printf "settings.%s: no mount of extraVolumeMounts holds %s" $name $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Options by their names, as YAML: those of the settings, and those that other values stand for. */}}
{{- define "lengthwise.options" -}}
{{- $made := dict -}}
{{- with .Values.adminPort }}{{ $_ := set $made "admin_port" . }}{{ end -}}
{{- if ne (toString .Values.workers) "auto" }}{{ $_ := set $made "workers" .Values.workers }}{{ end -}}
{{- with .Values.grpcPort }}{{ $_ := set $made "grpc_port" . }}{{ end -}}
{{- with .Values.apiKeys }}
{{- if .existingSecret }}{{ $_ := set $made "api_keys_file" (printf "/etc/lengthwise/keys/%s" .existingSecretKey) }}{{ end -}}
{{- end -}}
{{- with .Values.tls }}
{{- if and (or .clientCaSecret .probeSecret) (not (include "lengthwise.tls" $)) -}}
{{- fail "tls.existingSecret: with tls.clientCaSecret or tls.probeSecret the server needs a certificate too" -}}
{{- end -}}
{{- if .existingSecret -}}
{{- $_ := set $made "tls_cert_file" (printf "/etc/lengthwise/tls/%s" .certFilename) -}}
{{- $_ := set $made "tls_key_file" (printf "/etc/lengthwise/tls/%s" .keyFilename) -}}
{{- end -}}
{{- if .clientCaSecret -}}
{{- $_ := set $made "tls_client_ca_file" (printf "/etc/lengthwise/client-ca/%s" .clientCaFilename) -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := $made -}}
{{- if hasKey (default dict $.Values.settings) $name }}{{ fail (printf "settings.%s: another value of the chart sets this option; give one of the two" $name) }}{{ end -}}
{{- end -}}
{{- toYaml (merge $made (default dict .Values.settings)) -}}
{{- end -}}

{{/* The Secrets that are mounted: name, Secret, folder. */}}
{{- define "lengthwise.secrets" -}}
{{- with .Values.apiKeys.existingSecret }}
- {name: keys, secret: {{ . | quote }}, path: /etc/lengthwise/keys}
{{- end }}
{{- with .Values.tls.existingSecret }}
- {name: tls, secret: {{ . | quote }}, path: /etc/lengthwise/tls}
{{- end }}
{{- with .Values.tls.clientCaSecret }}
- {name: client-ca, secret: {{ . | quote }}, path: /etc/lengthwise/client-ca}
{{- end }}
{{- with .Values.tls.probeSecret }}
- {name: probe, secret: {{ . | quote }}, path: /etc/lengthwise/probe}
{{- end }}
{{- end -}}

{{/* The arguments of healthcheck.py that name a client's certificate, where one is needed and is not the server's own. */}}
{{- define "lengthwise.probeCertificate" -}}
{{- if .Values.tls.probeSecret }}, --cert, /etc/lengthwise/probe/tls.crt, --key, /etc/lengthwise/probe/tls.key{{ end -}}
{{- end -}}

{{/* How a probe asks: over HTTP(S), or, where a client must show a certificate, which a kubelet has not, from within. */}}
{{- define "lengthwise.probe" -}}
{{- $port := ternary "admin" "http" (ne (include "lengthwise.adminPort" .root) "0") -}}
{{- if include "lengthwise.mutualTls" .root -}}
exec:
  command: [python, -S, /opt/lengthwise/healthcheck.py, {{ .path }}{{ include "lengthwise.probeCertificate" .root }}]
{{- else -}}
httpGet:
  path: {{ .path }}
  port: {{ $port }}
  {{- if include "lengthwise.tls" .root }}
  scheme: HTTPS
  {{- end }}
{{- end }}
{{- end -}}

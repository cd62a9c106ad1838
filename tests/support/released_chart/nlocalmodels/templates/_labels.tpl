{{- /* Labels. Each takes {root, component}: server, downloader, uploader, test. */}}

{{- define "nlocalmodels.labels" -}}
{{ include "nlocalmodels.podLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Of pods. Without the chart's version: a new one would restart every pod, and a restart reads gigabytes. */}}
{{- define "nlocalmodels.podLabels" -}}
{{ include "nlocalmodels.selectorLabels" . }}
app.kubernetes.io/part-of: nlocalmodels
{{- end }}

{{- define "nlocalmodels.selectorLabels" -}}
app: {{ ternary "nlocalmodels" (printf "nlocalmodels-%s" .component) (eq .component "server") }}
app.kubernetes.io/name: {{ include "nlocalmodels.chartName" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

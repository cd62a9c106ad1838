{{- /* Names of objects. A name that is too long for Kubernetes keeps a hash of what is cut off, so that two releases with a
long common beginning do not share names. */}}

{{- define "nlocalmodels.chartName" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "nlocalmodels.fullname" -}}
{{- $name := include "nlocalmodels.chartName" . -}}
{{- /* A release's name may have dots, a Service's may not. */}}
{{- $release := replace "." "-" .Release.Name -}}
{{- $full := ternary $release (printf "%s-%s" $release $name) (contains $name $release) -}}
{{- include "nlocalmodels.shortened" (dict "name" (.Values.fullnameOverride | default $full) "length" 63) -}}
{{- end }}

{{- /* The release's name with a suffix: {root, suffix}. */}}
{{- define "nlocalmodels.suffixed" -}}
{{- $length := sub 62 (len .suffix) | int -}}
{{- include "nlocalmodels.shortened" (dict "name" (include "nlocalmodels.fullname" .root) "length" $length) }}-{{ .suffix -}}
{{- end }}

{{- /* A name of at most so many characters: {name, length}. */}}
{{- define "nlocalmodels.shortened" -}}
{{- if le (len .name) .length -}}
{{- .name | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" (.name | trunc (int (sub .length 6)) | trimSuffix "-") (sha256sum .name | trunc 5) -}}
{{- end -}}
{{- end }}

{{- define "nlocalmodels.serviceAccountName" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else -}}
{{- ternary (include "nlocalmodels.fullname" .) "default" .Values.serviceAccount.create -}}
{{- end -}}
{{- end }}

{{- define "nlocalmodels.claimName" -}}
{{- .Values.storage.pvc.existingClaim | default (include "nlocalmodels.suffixed" (dict "root" . "suffix" "models")) -}}
{{- end }}

{{- /* The Job's name carries the set, since a Job cannot be changed, and a hash of how it runs, for the same reason. */}}
{{- define "nlocalmodels.downloadJobName" -}}
{{- $spec := include "nlocalmodels.downloadJobSpec" . | sha256sum | trunc 5 -}}
{{- include "nlocalmodels.suffixed" (dict "root" . "suffix" (printf "download-%s-%s" (include "nlocalmodels.setId" .) $spec)) -}}
{{- end }}

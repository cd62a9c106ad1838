{{- /* Refusals of models.reload=live, gathered by _validate.tpl: whatever is computed from the set would change the pods with it,
and so restart them. */}}

{{- define "nlocalmodels.validate.live" -}}
{{- if include "nlocalmodels.isLive" . -}}
{{- $isEmptyDir := eq .Values.storage.strategy "emptyDir" -}}
{{- $why := "auto would restart the pods whenever models.reload=live changes the set" -}}
{{- $memory := include "nlocalmodels.mebibytes" (include "nlocalmodels.memoryBytes" .) -}}
{{- $volume := include "nlocalmodels.mebibytes" (include "nlocalmodels.volumeBytes" .) -}}
{{- if eq .Values.storage.strategy "baked" }}
models.reload: 'live' has nothing to take up with storage.strategy=baked, whose models change with the image; set it to rollout.
{{- end }}
{{- if and $isEmptyDir (semverCompare "<1.29-0" .Capabilities.KubeVersion.Version) }}
models.reload: 'live' with emptyDir needs sidecar containers, which Kubernetes has from 1.29 on, and this is {{ .Capabilities.KubeVersion.Version }}; set it to rollout, or use storage.strategy=pvc.
{{- end }}
{{- range $kind := list "requests" "limits" }}
{{- $of := get $.Values.resources $kind | default dict }}
{{- if eq (toString (get $of "memory")) "auto" }}
resources.{{ $kind }}.memory: {{ $why }}; state what the largest set needs and its largest model once more, since both are in memory while one is replaced. This set needs {{ $memory }}.
{{- end }}
{{- if and $isEmptyDir (eq (toString (get $of "ephemeral-storage")) "auto") }}
resources.{{ $kind }}.ephemeral-storage: {{ $why }}; state what the sets that storage.emptyDir.keepSets keeps need, and 1Gi. This set needs {{ $volume }}.
{{- end }}
{{- end }}
{{- if $isEmptyDir }}
{{- if eq (toString .Values.storage.emptyDir.sizeLimit) "auto" }}
storage.emptyDir.sizeLimit: {{ $why }}; state what the sets that storage.emptyDir.keepSets keeps need. This set needs {{ $volume }}.
{{- end }}
{{- include "nlocalmodels.validate.number" (dict "path" "storage.emptyDir.keepSets" "value" (.Values.storage.emptyDir.keepSets | default 2) "low" 1 "high" 100) }}
{{- end }}
{{- $seconds := include "nlocalmodels.loadSeconds" . | int64 }}
{{- if gt $seconds (include "nlocalmodels.liveStartSeconds" . | int64) }}
server.minReadBandwidth: at {{ include "nlocalmodels.plain" .Values.server.minReadBandwidth }} a second, reading the models takes {{ include "nlocalmodels.humanSeconds" $seconds }}, and with models.reload=live a start has {{ include "nlocalmodels.humanSeconds" (include "nlocalmodels.liveStartSeconds" .) }}; raise it, or set models.reload to rollout.
{{- end }}
{{- end -}}
{{- end }}

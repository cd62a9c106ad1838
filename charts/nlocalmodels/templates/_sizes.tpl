{{- /* What the models need: memory, space, time. All from the catalogue's bytes. */}}

{{- /* Bytes of a model's caches, as the server sizes them (engine/sizing.py; tests/contract/test_sizes.py holds both together):
one request's context at least, up to 1 GiB for what decodes together. A model of unknown shape may take all of that: {root, model}. */}}
{{- define "nlocalmodels.kvBytes" -}}
{{- $budget := int64 1073741824 -}}
{{- $perToken := int64 (.model.kvBytesPerToken | default 0) -}}
{{- if gt $perToken 0 -}}
{{- $context := int64 (.model.context | default .root.Values.server.contextTokens) -}}
{{- $context = min $context (int64 (.model.contextTokens | default $context)) -}}
{{- $shared := min (div $budget $perToken) (mul $context (int64 .root.Values.server.numSlots)) 32768 -}}
{{- $cells := mul (div (add (max $context $shared) 255) 256) 256 -}}
{{- mul $cells $perToken -}}
{{- else -}}
{{- $budget -}}
{{- end -}}
{{- end }}

{{- /* Memory of one model: weights, caches, and what llama.cpp and Python need beside them: {root, model}. */}}
{{- define "nlocalmodels.modelMemory" -}}
{{- $stated := include "nlocalmodels.bytes" (.model.memory | default "") -}}
{{- if $stated -}}
{{- $stated -}}
{{- else -}}
{{- add (.model.totalBytes | int64) (.model.kvBytes | int64) 419430400 -}}
{{- end -}}
{{- end }}

{{- define "nlocalmodels.totalBytes" -}}
{{- $sum := int64 0 -}}
{{- range (include "nlocalmodels.models" . | fromJson).models -}}{{- $sum = add $sum (int64 .totalBytes) -}}{{- end -}}
{{- $sum -}}
{{- end }}

{{- /* Memory of the server's container: its models and 256 MiB for itself. */}}
{{- define "nlocalmodels.memoryBytes" -}}
{{- $sum := int64 268435456 -}}
{{- range (include "nlocalmodels.models" . | fromJson).models -}}{{- $sum = add $sum (int64 .memoryBytes) -}}{{- end -}}
{{- $sum -}}
{{- end }}

{{- /* Memory with which a running server loads any of its models anew beside the old process, as it judges itself
(models/reload.py; tests/contract/test_sizes.py holds both together): the file and a tenth, and 1.5 GiB. */}}
{{- define "nlocalmodels.overlapBytes" -}}
{{- $largest := int64 0 -}}
{{- range (include "nlocalmodels.models" . | fromJson).models -}}{{- $largest = max $largest (int64 .totalBytes) -}}{{- end -}}
{{- add (include "nlocalmodels.memoryBytes" . | int64) (div (mul $largest 11) 10) 1610612736 -}}
{{- end }}

{{- /* What a volume must hold: the models and a tenth, for partial files and the filesystem itself. */}}
{{- define "nlocalmodels.volumeBytes" -}}
{{- div (mul (include "nlocalmodels.totalBytes" . | int64) 11) 10 -}}
{{- end }}

{{- /* Bytes of the emptyDir's size limit: as told, or what is needed and 20 GiB at least. */}}
{{- define "nlocalmodels.sizeLimitBytes" -}}
{{- if eq (toString .Values.storage.emptyDir.sizeLimit) "auto" -}}
{{- max (include "nlocalmodels.volumeBytes" . | int64) 21474836480 -}}
{{- else -}}
{{- include "nlocalmodels.bytes" .Values.storage.emptyDir.sizeLimit -}}
{{- end -}}
{{- end }}

{{- /* Seconds that so many bytes take at a bandwidth, a year at most, which Kubernetes' counters hold: {bytes, bandwidth}. */}}
{{- define "nlocalmodels.transferSeconds" -}}
{{- min 31536000 (div (int64 .bytes) (max 1 (include "nlocalmodels.bytes" .bandwidth | int64))) -}}
{{- end }}

{{- /* Seconds that a download may take at the stated bandwidth. */}}
{{- define "nlocalmodels.downloadSeconds" -}}
{{- include "nlocalmodels.transferSeconds" (dict "bytes" (include "nlocalmodels.totalBytes" .) "bandwidth" .Values.download.minBandwidth) -}}
{{- end }}

{{- /* Seconds that reading the models into memory may take, and a minute for everything else. */}}
{{- define "nlocalmodels.loadSeconds" -}}
{{- $transfer := dict "bytes" (include "nlocalmodels.totalBytes" .) "bandwidth" .Values.server.minReadBandwidth -}}
{{- add 60 (include "nlocalmodels.transferSeconds" $transfer | int64) -}}
{{- end }}

{{- /* The same where a changed set must not change the pods: a constant. */}}
{{- define "nlocalmodels.liveStartSeconds" -}}3600{{- end }}

{{- /* Seconds that a start may take before the container is stuck and is started again. */}}
{{- define "nlocalmodels.startSeconds" -}}
{{- ternary (include "nlocalmodels.liveStartSeconds" .) (include "nlocalmodels.loadSeconds" .) (eq (include "nlocalmodels.isLive" .) "true") -}}
{{- end }}

{{- /* Seconds that the longest request may take: a whole context of tokens at the stated rate, a minute at least, a day at most. What a
model's own context allows counts where the set may change the pods. */}}
{{- define "nlocalmodels.graceSeconds" -}}
{{- if ne (toString .Values.server.graceSeconds) "auto" -}}
{{- int64 .Values.server.graceSeconds -}}
{{- else -}}
{{- $contexts := list -}}
{{- range (include "nlocalmodels.models" . | fromJson).models -}}
{{- $context := int64 (.context | default $.Values.server.contextTokens) -}}
{{- $contexts = append $contexts (min $context (int64 (.contextTokens | default $context))) -}}
{{- end -}}
{{- $tokens := int64 .Values.server.contextTokens -}}
{{- if and $contexts (not (include "nlocalmodels.isLive" .)) -}}
{{- $tokens = int64 0 -}}{{- range $contexts -}}{{- $tokens = max $tokens . -}}{{- end -}}
{{- end -}}
{{- $rate := max 1 (int64 (.Values.server.minTokensPerSecond | default 10)) -}}
{{- min 86400 (max 60 (div (sub (add $tokens $rate) 1) $rate)) -}}
{{- end -}}
{{- end }}

{{- /* Seconds without progress after which a rollout counts as failed. A new pod may have to wait for a whole download. */}}
{{- define "nlocalmodels.progressDeadlineSeconds" -}}
{{- $download := ternary 0 (include "nlocalmodels.downloadSeconds" . | int64) (eq .Values.storage.strategy "baked") -}}
{{- max 600 (add 300 $download (include "nlocalmodels.loadSeconds" . | int64)) -}}
{{- end }}

{{- /* Resources of the server's container, with `auto` computed. */}}
{{- define "nlocalmodels.serverResources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- $isEmptyDir := eq .Values.storage.strategy "emptyDir" -}}
{{- range $kind := list "requests" "limits" -}}
{{- $of := get $resources $kind | default dict -}}
{{- if eq (toString (get $of "memory")) "auto" -}}
{{- $_ := set $of "memory" (include "nlocalmodels.mebibytes" (include "nlocalmodels.memoryBytes" $)) -}}
{{- end -}}
{{- if eq (toString (get $of "ephemeral-storage")) "auto" -}}
{{- $bytes := int64 1073741824 -}}
{{- if and $isEmptyDir (eq $kind "limits") -}}
{{- $bytes = add $bytes (include "nlocalmodels.sizeLimitBytes" $ | int64) -}}
{{- else if $isEmptyDir -}}
{{- $bytes = add 268435456 (include "nlocalmodels.volumeBytes" $ | int64) -}}
{{- else if eq $kind "requests" -}}
{{- $bytes = int64 268435456 -}}
{{- end -}}
{{- $_ := set $of "ephemeral-storage" (include "nlocalmodels.mebibytes" $bytes) -}}
{{- end -}}
{{- if $.Values.gpu.enabled -}}
{{- $_ := set $of $.Values.gpu.resource ($.Values.gpu.count | int64) -}}
{{- end -}}
{{- if $of -}}{{- $_ := set $resources $kind $of -}}{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}

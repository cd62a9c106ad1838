{{- /* Every refusal of values that have the right form (values.schema.json) but cannot work, all in one message. Each says the
value's path, the problem and the remedy. One define per section of values.yaml; each writes its sentences as lines. */}}

{{- define "nlocalmodels.validate" -}}
{{- $lines := list -}}
{{- range $section := list "models" "live" "model" "storage" "download" "server" "images" "network" "labels" "resources" -}}
{{- range $line := include (printf "nlocalmodels.validate.%s" $section) $ | splitList "\n" -}}
{{- with trim $line -}}{{- $lines = append $lines . -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if $lines -}}
{{- printf "\n\n%d of the values cannot work:\n  - %s\n" (len $lines) (uniq $lines | join "\n  - ") | fail -}}
{{- end -}}
{{- end }}

{{- /* One of several words: {path, value, words}. */}}
{{- define "nlocalmodels.validate.word" -}}
{{- if not (has .value .words) }}
{{ .path }}: '{{ .value }}' is not known; set it to {{ initial .words | join ", " }} or {{ last .words }}.
{{- end }}
{{- end }}

{{- /* A quantity of bytes: {path, value}. */}}
{{- define "nlocalmodels.validate.quantity" -}}
{{- if not (include "nlocalmodels.bytes" .value) }}
{{ .path }}: '{{ include "nlocalmodels.plain" .value }}' is no quantity of bytes; write it as 50Gi, 512Mi or a whole number.
{{- end }}
{{- end }}

{{- /* A number within bounds: {path, value, low, high}. */}}
{{- define "nlocalmodels.validate.number" -}}
{{- if or (lt (int64 .value) (int64 .low)) (gt (int64 .value) (int64 .high)) }}
{{ .path }}: {{ include "nlocalmodels.plain" .value }} is out of range; set it from {{ .low }} to {{ .high }}.
{{- end }}
{{- end }}

{{- define "nlocalmodels.validate.storage" -}}
{{- $storage := .Values.storage -}}
{{- include "nlocalmodels.validate.word" (dict "path" "storage.strategy" "value" $storage.strategy "words" (list "emptyDir" "pvc" "baked")) }}
{{- include "nlocalmodels.validate.word" (dict "path" "storage.baked.mount" "value" $storage.baked.mount "words" (list "container" "volume")) }}
{{- $needed := include "nlocalmodels.volumeBytes" . | int64 -}}
{{- $need := printf "the models need %s (%s and a tenth)" (include "nlocalmodels.mebibytes" $needed) (include "nlocalmodels.humanBytes" (include "nlocalmodels.totalBytes" .)) -}}
{{- $limit := $storage.emptyDir.sizeLimit -}}
{{- if ne (toString $limit) "auto" }}
{{- $bytes := include "nlocalmodels.bytes" $limit -}}
{{- if not $bytes }}
storage.emptyDir.sizeLimit: '{{ $limit }}' is neither auto nor a quantity of bytes; write it as auto or 50Gi.
{{- else if and (eq $storage.strategy "emptyDir") (lt (int64 $bytes) $needed) }}
storage.emptyDir.sizeLimit: {{ include "nlocalmodels.plain" $limit }} is too small: {{ $need }}; set it to auto.
{{- end }}
{{- end }}
{{- $size := include "nlocalmodels.bytes" $storage.pvc.size -}}
{{- include "nlocalmodels.validate.quantity" (dict "path" "storage.pvc.size" "value" $storage.pvc.size) }}
{{- if and $size (eq $storage.strategy "pvc") (not $storage.pvc.existingClaim) (lt (int64 $size) $needed) }}
storage.pvc.size: {{ include "nlocalmodels.plain" $storage.pvc.size }} is too small: {{ $need }}; set it to {{ include "nlocalmodels.mebibytes" $needed }} or more.
{{- end }}
{{- range $mode := $storage.pvc.accessModes }}
{{- include "nlocalmodels.validate.word" (dict "path" "storage.pvc.accessModes" "value" $mode "words" (list "ReadWriteMany" "ReadWriteOnce")) }}
{{- end }}
{{- $most := ternary .Values.autoscaling.maxReplicas .Values.replicas .Values.autoscaling.enabled -}}
{{- if and (eq $storage.strategy "pvc") (not $storage.pvc.existingClaim) (not (has "ReadWriteMany" $storage.pvc.accessModes)) (gt (int64 $most) 1) }}
storage.pvc.accessModes: without ReadWriteMany a second node cannot mount the volume, but there may be {{ $most }} replicas; use ReadWriteMany, or set replicas=1 and autoscaling.enabled=false.
{{- end }}
{{- include "nlocalmodels.validate.number" (dict "path" "storage.pvc.prune.keepSets" "value" $storage.pvc.prune.keepSets "low" 1 "high" 100) }}
{{- include "nlocalmodels.validate.number" (dict "path" "storage.pvc.uploader.timeoutSeconds" "value" $storage.pvc.uploader.timeoutSeconds "low" 60 "high" 2592000) }}
{{- if and $storage.pvc.uploader.enabled (ne $storage.strategy "pvc") }}
storage.pvc.uploader.enabled: there is no volume to upload to with storage.strategy={{ $storage.strategy }}; set storage.strategy=pvc or leave the uploader out.
{{- end }}
{{- if eq $storage.strategy "baked" }}
{{- if not $storage.baked.image.repository }}
storage.baked.image.repository: is empty; name the image that `make bake` built.
{{- end }}
{{- if not (or $storage.baked.image.tag $storage.baked.image.digest) }}
storage.baked.image.tag: is empty, and so is storage.baked.image.digest; give one of them.
{{- end }}
{{- if and (eq $storage.baked.mount "volume") (semverCompare "<1.35-0" .Capabilities.KubeVersion.Version) }}
storage.baked.mount: 'volume' needs Kubernetes 1.35, this is {{ .Capabilities.KubeVersion.Version }}; set it to container, with an image that holds the server too.
{{- end }}
{{- end }}
{{- end }}

{{- define "nlocalmodels.validate.download" -}}
{{- $download := .Values.download -}}
{{- include "nlocalmodels.validate.quantity" (dict "path" "download.minBandwidth" "value" $download.minBandwidth) }}
{{- with $download.maxBandwidth }}
{{- include "nlocalmodels.validate.quantity" (dict "path" "download.maxBandwidth" "value" .) }}
{{- end }}
{{- if eq (include "nlocalmodels.bytes" $download.minBandwidth) "0" }}
download.minBandwidth: 0 leaves no deadline to compute; give what the slowest network in use carries, such as 512Ki.
{{- end }}
{{- if and $download.maxBandwidth (lt (include "nlocalmodels.bytes" $download.maxBandwidth | default "1024" | int64) 1024) }}
download.maxBandwidth: {{ include "nlocalmodels.plain" $download.maxBandwidth }} is less than 1Ki, the least that the downloader takes; raise it, or leave it empty for no limit.
{{- end }}
{{- $least := include "nlocalmodels.bytes" $download.minBandwidth -}}
{{- $most := include "nlocalmodels.bytes" $download.maxBandwidth -}}
{{- if and $least $most (lt (int64 $most) (int64 $least)) }}
download.maxBandwidth: {{ include "nlocalmodels.plain" $download.maxBandwidth }} is less than download.minBandwidth, {{ include "nlocalmodels.plain" $download.minBandwidth }}, from which deadlines are computed; lower that one as well.
{{- end }}
{{- include "nlocalmodels.validate.number" (dict "path" "download.attempts" "value" $download.attempts "low" 1 "high" 1000) }}
{{- include "nlocalmodels.validate.number" (dict "path" "download.connections" "value" $download.connections "low" 1 "high" 16) }}
{{- include "nlocalmodels.validate.number" (dict "path" "download.stallSeconds" "value" $download.stallSeconds "low" 1 "high" 3600) }}
{{- if and $download.offline (eq .Values.storage.strategy "emptyDir") }}
{{- range $model := (include "nlocalmodels.models" . | fromJson).models }}
{{- range prepend (.shards | default list) . }}
{{- if not (regexMatch "(^| )file:///" (prepend (.mirrors | default list) .source | join " ")) }}
download.offline: an emptyDir starts empty, and '{{ .file }}' has no file:///… source; use storage.strategy=pvc or baked.
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- with $download.endpoint }}
{{- if not (regexMatch "^https?://[^/ ]+" .) }}
download.endpoint: '{{ . }}' is no address; write it as https://host, or leave it empty for Hugging Face itself.
{{- end }}
{{- end }}
{{- with ($download.s3 | default dict).endpoint }}
{{- if not (regexMatch "^https?://[^/ ]+" .) }}
download.s3.endpoint: '{{ . }}' is no address; write it as https://host, or leave it empty for Amazon's.
{{- end }}
{{- end }}
{{- range $name := list "http" "https" }}
{{- with get $download.proxy $name }}
{{- if not (regexMatch "^https?://[^/ ]+" .) }}
download.proxy.{{ $name }}: '{{ . }}' is no proxy; write it as http://host:port.
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "nlocalmodels.validate.server" -}}
{{- include "nlocalmodels.validate.word" (dict "path" "server.readyWhen" "value" .Values.server.readyWhen "words" (list "default" "all")) }}
{{- range $name, $bounds := dict "contextTokens" (list 64 16777216) "numSlots" (list 1 256) "numThreads" (list 0 512) "minTokensPerSecond" (list 1 1000000) "preStopSeconds" (list 0 600) }}
{{- include "nlocalmodels.validate.number" (dict "path" (printf "server.%s" $name) "value" (ternary (get $.Values.server $name) (first $bounds) (hasKey $.Values.server $name)) "low" (first $bounds) "high" (last $bounds)) }}
{{- end }}
{{- if kindIs "string" .Values.server.graceSeconds }}
{{- if ne .Values.server.graceSeconds "auto" }}
server.graceSeconds: '{{ .Values.server.graceSeconds }}' is neither auto nor a whole number of seconds; write it as auto or 600.
{{- end }}
{{- else }}
{{- include "nlocalmodels.validate.number" (dict "path" "server.graceSeconds" "value" .Values.server.graceSeconds "low" 0 "high" 86400) }}
{{- end }}
{{- include "nlocalmodels.validate.quantity" (dict "path" "server.minReadBandwidth" "value" .Values.server.minReadBandwidth) }}
{{- if eq (include "nlocalmodels.bytes" .Values.server.minReadBandwidth) "0" }}
server.minReadBandwidth: 0 leaves no time to compute; give what the slowest volume in use reads, such as 10Mi.
{{- end }}
{{- include "nlocalmodels.validate.number" (dict "path" "replicas" "value" .Values.replicas "low" 0 "high" 1000) }}
{{- include "nlocalmodels.validate.number" (dict "path" "tests.timeoutSeconds" "value" .Values.tests.timeoutSeconds "low" 1 "high" 3600) }}
{{- with .Values.autoscaling }}
{{- if and .enabled (or (lt (int64 .minReplicas) 1) (lt (int64 .maxReplicas) (int64 .minReplicas))) }}
autoscaling.maxReplicas: {{ .maxReplicas }} with autoscaling.minReplicas {{ .minReplicas }}; the least must be 1 or more and the most no less than it.
{{- end }}
{{- if .enabled }}
{{- include "nlocalmodels.validate.number" (dict "path" "autoscaling.targetCPUUtilizationPercentage" "value" .targetCPUUtilizationPercentage "low" 1 "high" 1000) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "nlocalmodels.validate.images" -}}
{{- range $path, $image := dict "image.server" .Values.image.server "image.downloader" .Values.image.downloader "storage.baked.image" .Values.storage.baked.image }}
{{- with $image.digest }}
{{- if not (regexMatch "^sha256:[0-9a-f]{64}$" .) }}
{{ $path }}.digest: '{{ . }}' is no digest; write it as sha256: and 64 hex digits.
{{- end }}
{{- end }}
{{- with $image.pullPolicy }}
{{- include "nlocalmodels.validate.word" (dict "path" (printf "%s.pullPolicy" $path) "value" . "words" (list "Always" "IfNotPresent" "Never")) }}
{{- end }}
{{- end }}
{{- range $path, $image := dict "image.server" .Values.image.server "image.downloader" .Values.image.downloader }}
{{- if not (and $image.repository (or $image.tag $image.digest)) }}
{{ $path }}: needs a repository and a tag or digest; the chart's own are in its values.yaml.
{{- end }}
{{- end }}
{{- end }}

{{- define "nlocalmodels.validate.network" -}}
{{- include "nlocalmodels.validate.word" (dict "path" "service.type" "value" .Values.service.type "words" (list "ClusterIP" "NodePort" "LoadBalancer")) }}
{{- include "nlocalmodels.validate.number" (dict "path" "service.port" "value" .Values.service.port "low" 1 "high" 65535) }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
httpRoute.parentRefs: is empty, so no gateway would take the route; name one, such as [{name: gateway, namespace: gateways}].
{{- end }}
{{- end }}

{{- /* A name that the chart sets as well would stand twice, and one of both would be lost. */}}
{{- define "nlocalmodels.validate.labels" -}}
{{- $pod := list "app" "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/part-of" -}}
{{- $all := concat $pod (list "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart") -}}
{{- $server := list "kubectl.kubernetes.io/default-container" "nlocalmodels.io/set" "checksum/server" -}}
{{- $job := list "nlocalmodels.io/set" "checksum/downloads" -}}
{{- include "nlocalmodels.validate.names" (dict "path" "commonLabels" "value" .Values.commonLabels "taken" $all) }}
{{- include "nlocalmodels.validate.names" (dict "path" "podLabels" "value" .Values.podLabels "taken" $pod) }}
{{- include "nlocalmodels.validate.names" (dict "path" "podAnnotations" "value" .Values.podAnnotations "taken" $server) }}
{{- include "nlocalmodels.validate.names" (dict "path" "download.podLabels" "value" .Values.download.podLabels "taken" $pod) }}
{{- include "nlocalmodels.validate.names" (dict "path" "download.podAnnotations" "value" .Values.download.podAnnotations "taken" $job) }}
{{- end }}

{{- /* Names that are not taken: {path, value, taken}. */}}
{{- define "nlocalmodels.validate.names" -}}
{{- range $name, $_ := .value }}
{{- if has $name $.taken }}
{{ $.path }}: '{{ $name }}' is set by the chart itself; leave it out.
{{- end }}
{{- end }}
{{- end }}

{{- define "nlocalmodels.validate.resources" -}}
{{- $needed := include "nlocalmodels.memoryBytes" . | int64 -}}
{{- $limits := .Values.resources.limits | default dict -}}
{{- $requests := .Values.resources.requests | default dict -}}
{{- range $kind, $of := dict "limits" $limits "requests" $requests }}
{{- range $name := list "memory" "ephemeral-storage" }}
{{- with get $of $name }}
{{- if ne (toString .) "auto" }}
{{- include "nlocalmodels.validate.quantity" (dict "path" (printf "resources.%s.%s" $kind $name) "value" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- $known := (include "nlocalmodels.modelIds" . | fromJson).ids -}}
{{- range $kind, $of := dict "limits" $limits "requests" $requests }}
{{- if and (eq (toString (get $of "memory")) "auto") (not $known) (eq $.Values.models.set "none") (ne $.Values.storage.strategy "emptyDir") }}
resources.{{ $kind }}.memory: auto has nothing to compute from, since no model is declared; state what the files on the volume need: their bytes, 1Gi of cache and 400Mi for each, and 256Mi for the server.
{{- end }}
{{- end }}
{{- $limit := include "nlocalmodels.bytes" (get $limits "memory" | default "") -}}
{{- if and $limit (lt (int64 $limit) $needed) }}
resources.limits.memory: {{ get $limits "memory" | include "nlocalmodels.plain" }} is too small for {{ include "nlocalmodels.mebibytes" $needed }}: {{ include "nlocalmodels.memoryArithmetic" . }}; set it to auto, leave models out, lower server.contextTokens, or state models.add.<id>.memory where you know better.
{{- end }}
{{- $request := include "nlocalmodels.bytes" (get $requests "memory" | default "") -}}
{{- $most := ternary (toString $needed) $limit (eq (toString (get $limits "memory")) "auto") -}}
{{- if and $most $request (gt (int64 $request) (int64 $most)) }}
resources.requests.memory: {{ get $requests "memory" | include "nlocalmodels.plain" }} is more than resources.limits.memory, {{ get $limits "memory" | include "nlocalmodels.plain" }} ({{ include "nlocalmodels.mebibytes" $most }}); lower it or set both to auto.
{{- end }}
{{- $of := include "nlocalmodels.serverResources" . | fromYaml -}}
{{- $limitText := dig "limits" "ephemeral-storage" "" $of -}}
{{- $limit = include "nlocalmodels.bytes" $limitText -}}
{{- $request = include "nlocalmodels.bytes" (dig "requests" "ephemeral-storage" "" $of) -}}
{{- $needed = include "nlocalmodels.volumeBytes" . | int64 -}}
{{- $isAuto := eq (toString (get $limits "ephemeral-storage")) "auto" -}}
{{- if and $limit (not $isAuto) (eq .Values.storage.strategy "emptyDir") (lt (int64 $limit) $needed) }}
resources.limits.ephemeral-storage: {{ include "nlocalmodels.plain" $limitText }} is too small: the models need {{ include "nlocalmodels.mebibytes" $needed }} ({{ include "nlocalmodels.humanBytes" (include "nlocalmodels.totalBytes" .) }} and a tenth); set it to auto.
{{- else if and $limit $request (not (and $isAuto (eq (toString (get $requests "ephemeral-storage")) "auto"))) (gt (int64 $request) (int64 $limit)) }}
resources.requests.ephemeral-storage: {{ include "nlocalmodels.mebibytes" $request }} is more than resources.limits.ephemeral-storage, {{ include "nlocalmodels.mebibytes" $limit }}; lower it or set both to auto.
{{- end }}
{{- if .Values.gpu.enabled }}
{{- include "nlocalmodels.validate.number" (dict "path" "gpu.count" "value" .Values.gpu.count "low" 1 "high" 64) }}
{{- end }}
{{- end }}

{{- /* The sum in words: each model's weights, caches and overhead, and the server's own. */}}
{{- define "nlocalmodels.memoryArithmetic" -}}
{{- $parts := list -}}
{{- range (include "nlocalmodels.models" . | fromJson).models -}}
{{- if .memory -}}
{{- $parts = append $parts (printf "%s %s as stated" .id (include "nlocalmodels.plain" .memory)) -}}
{{- else -}}
{{- $parts = append $parts (printf "%s %s (weights %s, caches %s, other 400 MiB)" .id (include "nlocalmodels.humanBytes" .memoryBytes) (include "nlocalmodels.humanBytes" .totalBytes) (include "nlocalmodels.humanBytes" .kvBytes)) -}}
{{- end -}}
{{- end -}}
{{- append $parts "the server itself 256 MiB" | join " + " -}}
{{- end }}

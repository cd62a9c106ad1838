{{- /* Which models: from `models` and the catalogue to one resolved list. None of it fails on wrong values: _validate.tpl
gathers what is wrong, and these leave it out. */}}

{{- /* JSON {ids: […]}: the set without what is removed, then the added ones by name. */}}
{{- define "nlocalmodels.modelIds" -}}
{{- $catalogue := .Files.Get "catalogue.yaml" | fromYaml -}}
{{- $ids := list -}}
{{- range get $catalogue.sets .Values.models.set | default list -}}
{{- if not (has . $.Values.models.remove) -}}{{- $ids = append $ids . -}}{{- end -}}
{{- end -}}
{{- range $id := keys (.Values.models.add | default dict) | sortAlpha -}}
{{- if not (has $id $ids) -}}{{- $ids = append $ids $id -}}{{- end -}}
{{- end -}}
{{- dict "ids" $ids | toJson -}}
{{- end }}

{{- /* JSON {models: […]}, each with id, file, source, mirrors, sha256, sizeBytes, shards, contextTokens, kvBytesPerToken,
embedding, memory, and the sums totalBytes, kvBytes, memoryBytes. */}}
{{- define "nlocalmodels.models" -}}
{{- $catalogue := .Files.Get "catalogue.yaml" | fromYaml -}}
{{- $models := list -}}
{{- range $id := (include "nlocalmodels.modelIds" . | fromJson).ids -}}
{{- $own := get ($.Values.models.add | default dict) $id | default dict -}}
{{- $model := merge (dict "id" $id) $own (get $catalogue.models $id | default dict) -}}
{{- if not $model.file -}}
{{- $path := regexReplaceAll "[?#].*$" (regexReplaceAll "@[^@/]*$" ($model.source | default "") "") "" -}}
{{- $_ := set $model "file" (base $path) -}}
{{- end -}}
{{- $_ := set $model "sha256" (lower ($model.sha256 | default "")) -}}
{{- $total := int64 ($model.sizeBytes | default 0) -}}
{{- range $model.shards -}}{{- $total = add $total (int64 (.sizeBytes | default 0)) -}}{{- end -}}
{{- $_ := set $model "totalBytes" $total -}}
{{- $_ := set $model "kvBytes" (include "nlocalmodels.kvBytes" (dict "root" $ "model" $model) | int64) -}}
{{- $_ := set $model "memoryBytes" (include "nlocalmodels.modelMemory" (dict "root" $ "model" $model) | int64) -}}
{{- $models = append $models $model -}}
{{- end -}}
{{- dict "models" $models | toJson -}}
{{- end }}

{{- /* The model for requests that name none. Empty where the volume's content is not known here. */}}
{{- define "nlocalmodels.defaultModel" -}}
{{- $ids := (include "nlocalmodels.modelIds" . | fromJson).ids -}}
{{- if .Values.models.default -}}
{{- .Values.models.default -}}
{{- else if $ids -}}
{{- ternary "llama-2-7b-chat" (first $ids) (has "llama-2-7b-chat" $ids) -}}
{{- end -}}
{{- end }}

{{- /* A short hash of what decides the bytes: each file and its digest, in order, as the downloader computes it for the set's
manifest. A file without a digest has its source in its place. */}}
{{- define "nlocalmodels.setId" -}}
{{- $lines := "" -}}
{{- range (include "nlocalmodels.models" . | fromJson).models -}}
{{- $lines = printf "%s%s %s\n" $lines .file (.sha256 | default .source) -}}
{{- range .shards -}}{{- $lines = printf "%s%s %s\n" $lines .file (lower (.sha256 | default .source)) -}}{{- end -}}
{{- end -}}
{{- sha256sum $lines | trunc 12 -}}
{{- end }}

{{- /* The set's id as its manifest on the volume will have it; empty where nothing is declared, or a digest is not known before
the download. */}}
{{- define "nlocalmodels.setOfManifest" -}}
{{- $models := (include "nlocalmodels.models" . | fromJson).models -}}
{{- $isKnown := not (empty $models) -}}
{{- range $models -}}
{{- range prepend (.shards | default list) . -}}{{- if not .sha256 -}}{{- $isKnown = false -}}{{- end -}}{{- end -}}
{{- end -}}
{{- if $isKnown -}}{{- include "nlocalmodels.setId" . -}}{{- end -}}
{{- end }}

{{- /* "true" where running pods take up a changed set by themselves. */}}
{{- define "nlocalmodels.isLive" -}}
{{- /* Values of a release from before this key have none of it. */}}
{{- if eq (.Values.models.reload | default "rollout") "live" -}}true{{- end -}}
{{- end }}

{{- /* downloads.yaml: the contract with the downloader. */}}
{{- define "nlocalmodels.downloadsYaml" -}}
modelPath: {{ include "nlocalmodels.modelPath" . }}
allowUnverified: {{ .Values.models.allowUnverified }}
{{- if and (eq .Values.storage.strategy "pvc") .Values.storage.pvc.prune.enabled }}
prune:
  keepSets: {{ .Values.storage.pvc.prune.keepSets }}
{{- else if and (eq .Values.storage.strategy "emptyDir") (include "nlocalmodels.isLive" .) }}
prune:
  keepSets: {{ .Values.storage.emptyDir.keepSets | default 2 }}
{{- end }}
{{- with (include "nlocalmodels.models" . | fromJson).models }}
models:
{{- range . }}
  - id: {{ .id | quote }}
    {{- include "nlocalmodels.downloadsFile" . | nindent 4 }}
    {{- with .shards }}
    shards:
      {{- range . }}
      - {{ include "nlocalmodels.downloadsFile" . | nindent 8 | trim }}
      {{- end }}
    {{- end }}
{{- end }}
{{- else }}
models: []
{{- end }}
{{- end }}

{{- define "nlocalmodels.downloadsFile" -}}
file: {{ .file | quote }}
source: {{ .source | quote }}
{{- with .mirrors }}
mirrors: {{ toJson . }}
{{- end }}
{{- with .sha256 }}
sha256: {{ lower . | quote }}
{{- end }}
{{- with .sizeBytes }}
sizeBytes: {{ int64 . }}
{{- end }}
{{- end }}

{{- /* server.yaml: the contract with the server. */}}
{{- define "nlocalmodels.serverYaml" -}}
readyWhen: {{ .Values.server.readyWhen }}
contextTokens: {{ int64 .Values.server.contextTokens }}
numSlots: {{ .Values.server.numSlots }}
{{- with .Values.server.numThreads }}
numThreads: {{ . }}
{{- end }}
graceSeconds: {{ include "nlocalmodels.graceSeconds" . }}
{{- $isLive := include "nlocalmodels.isLive" . }}
{{- /* A running server takes a set up once it is complete; one of a baked image refuses to start with another. */}}
{{- if or $isLive (eq .Values.storage.strategy "baked") }}
{{- with include "nlocalmodels.setOfManifest" . }}
set: {{ . | quote }}
{{- end }}
{{- end }}
{{- if $isLive }}
reload: live
{{- with include "nlocalmodels.defaultModel" . }}
defaultModel: {{ . | quote }}
{{- end }}
{{- end }}
{{- with (include "nlocalmodels.models" . | fromJson).models }}
models:
{{- range . }}
  - id: {{ .id | quote }}
    file: {{ .file | quote }}
    {{- with .context }}
    contextTokens: {{ int64 . }}
    {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "nlocalmodels.modelPath" -}}/app/models{{- end }}

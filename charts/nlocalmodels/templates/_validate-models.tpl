{{- /* Refusals of `models`, gathered by _validate.tpl. */}}

{{- define "nlocalmodels.validate.models" -}}
{{- $catalogue := .Files.Get "catalogue.yaml" | fromYaml -}}
{{- $ids := (include "nlocalmodels.modelIds" . | fromJson).ids -}}
{{- $strategy := .Values.storage.strategy -}}
{{- $set := .Values.models.set -}}
{{- if not (or (eq $set "none") (hasKey $catalogue.sets $set)) }}
models.set: '{{ $set }}' is not known; set it to {{ keys $catalogue.sets | sortAlpha | join ", " }} or none.
{{- end }}
{{- range .Values.models.remove }}
{{- if not (has . (get $catalogue.sets $set | default list)) }}
models.remove: '{{ . }}' is not in the set '{{ $set }}'; leave it out of the list. The set has {{ get $catalogue.sets $set | default (list "nothing") | join ", " }}.
{{- end }}
{{- end }}
{{- include "nlocalmodels.validate.word" (dict "path" "models.reload" "value" (.Values.models.reload | default "rollout") "words" (list "rollout" "live")) }}
{{- if and (not $ids) (eq $strategy "emptyDir") }}
models.set: with '{{ $set }}' and nothing in models.add there is nothing to fetch; choose starter, production or enterprise, add models, or bring your own files with storage.strategy=pvc.
{{- end }}
{{- with .Values.models.default }}
{{- if and $ids (not (has . $ids)) }}
models.default: '{{ . }}' is not among the models; set it to one of {{ join ", " $ids }}, or add it to models.add.
{{- end }}
{{- end }}
{{- $byLowered := dict -}}
{{- range $ids -}}
{{- if hasKey $byLowered (lower .) }}
models.add.{{ . }}: differs from '{{ get $byLowered (lower .) }}' in capitals only; give one of them another id.
{{- end }}
{{- $_ := set $byLowered (lower .) . -}}
{{- end -}}
{{- $files := dict -}}
{{- range $model := (include "nlocalmodels.models" . | fromJson).models -}}
{{- range $file := prepend (.shards | default list) . -}}
{{- $name := lower (toString $file.file) -}}
{{- if hasKey $files $name }}
models.add.{{ $model.id }}.file: '{{ $file.file }}' is the file of '{{ get $files $name }}' as well; give one of them another name.
{{- end }}
{{- $_ := set $files $name $model.id -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* Each model that is not the catalogue's alone. */}}
{{- define "nlocalmodels.validate.model" -}}
{{- $catalogue := .Files.Get "catalogue.yaml" | fromYaml -}}
{{- range $model := (include "nlocalmodels.models" . | fromJson).models -}}
{{- $path := printf "models.add.%s" .id -}}
{{- if not (regexMatch "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$" .id) }}
{{ $path }}: '{{ .id }}' cannot be a model's id; give 1 to 128 letters, digits, dots, dashes or underscores.
{{- end }}
{{- if and (not .source) (not (hasKey $catalogue.models .id)) }}
{{ $path }}: is not in the catalogue, so it needs source, sha256 and sizeBytes; or use one of {{ keys $catalogue.models | sortAlpha | join ", " }}.
{{- else }}
{{- include "nlocalmodels.validate.file" (dict "path" $path "file" . "allowUnverified" $.Values.models.allowUnverified) }}
{{- range $index, $shard := .shards }}
{{- include "nlocalmodels.validate.file" (dict "path" (printf "%s.shards[%d]" $path $index) "file" $shard "allowUnverified" $.Values.models.allowUnverified) }}
{{- end }}
{{- end }}
{{- with .memory }}
{{- include "nlocalmodels.validate.quantity" (dict "path" (printf "%s.memory" $path) "value" .) }}
{{- end }}
{{- with .context }}
{{- include "nlocalmodels.validate.number" (dict "path" (printf "%s.context" $path) "value" . "low" 64 "high" ($model.contextTokens | default 16777216)) }}
{{- end }}
{{- include "nlocalmodels.validate.parts" (dict "path" $path "model" .) }}
{{- if .embedding }}
{{ $path }}: is an embedding model, and the server generates text only; leave it out.
{{- end }}
{{- end -}}
{{- end }}

{{- /* "true" for what the downloader takes as a source. */}}
{{- define "nlocalmodels.isSource" -}}
{{- $text := . | default "" -}}
{{- if regexMatch "^https?://[^/?# ]+/.+$" $text -}}
{{- $port := regexReplaceAll "^https?://([^/?#]*@)?(\\[[^/?#]*\\]|[^/?#:]*)([^/?#]*)/.*$" $text "${3}" -}}
{{- if or (not $port) (and (regexMatch "^:[1-9][0-9]{0,4}$" $port) (le (trimPrefix ":" $port | int) 65535)) -}}true{{- end -}}
{{- else if regexMatch "^hf://[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+/[^ @?#]+@[A-Za-z0-9_.-]+$" $text -}}
{{- if not (regexMatch "/\\.\\.[/@]" $text) -}}true{{- end -}}
{{- else if regexMatch "^s3://[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]/([^/?#]|[^/?#][^?#]*[^/?#])$" $text -}}true
{{- else if regexMatch "^oci://[A-Za-z0-9][A-Za-z0-9.-]*(:[1-9][0-9]{0,4})?/[a-z0-9]+([._/-]+[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}(@sha256:[0-9a-f]{64})?|@sha256:[0-9a-f]{64})(#[^#?]+)?$" $text -}}true
{{- else if regexMatch "^file:///.+$" $text -}}true
{{- end -}}
{{- end }}

{{- /* What every file must state: {path, file, allowUnverified}. */}}
{{- define "nlocalmodels.validate.file" -}}
{{- if not (include "nlocalmodels.isSource" .file.source) }}
{{ .path }}.source: '{{ .file.source }}' is no source; write it as https://…, http://…, file:///…, s3://BUCKET/KEY, oci://REGISTRY/REPOSITORY@DIGEST or hf://ORG/REPO/FILE@COMMIT.
{{- end }}
{{- range $index, $mirror := .file.mirrors }}
{{- if not (include "nlocalmodels.isSource" $mirror) }}
{{ $.path }}.mirrors[{{ $index }}]: '{{ $mirror }}' is no source; write it as https://…, http://…, file:///…, s3://BUCKET/KEY, oci://REGISTRY/REPOSITORY@DIGEST or hf://ORG/REPO/FILE@COMMIT.
{{- end }}
{{- end }}
{{- if not (regexMatch "(?i)^[a-z0-9][a-z0-9._ +-]{0,200}\\.gguf$" (.file.file | default "")) }}
{{ .path }}.file: '{{ .file.file }}' cannot be a model's file; give a plain file name that ends in .gguf, the only format that is served.
{{- end }}
{{- if .file.sha256 }}
{{- if not (regexMatch "(?i)^[0-9a-f]{64}$" .file.sha256) }}
{{ .path }}.sha256: '{{ .file.sha256 }}' is no sha256; give 64 hex digits, as `sha256sum FILE` prints them.
{{- end }}
{{- else if not (or .allowUnverified (regexMatch "^(hf://[^@]+@[0-9a-f]{40}|oci://[^@]+@sha256:[0-9a-f]{64}(#.*)?)$" (.file.source | default ""))) }}
{{ .path }}.sha256: is missing, so nothing says which bytes are right; give the file's sha256, pin an hf:// source to a commit (@ and 40 hex digits) or an oci:// source to its manifest (@sha256: and 64), or set models.allowUnverified=true.
{{- end }}
{{- if le (int64 (.file.sizeBytes | default 0)) 0 }}
{{ .path }}.sizeBytes: is missing, and every size is computed from it; give the file's exact size in bytes.
{{- end }}
{{- end }}

{{- /* A split model's files, by their names: {path, model}. */}}
{{- define "nlocalmodels.validate.parts" -}}
{{- $file := .model.file | default "" -}}
{{- $part := regexFind "-[0-9]{5}-of-[0-9]{5}\\.gguf$" (lower $file) -}}
{{- if $part }}
{{- $count := regexReplaceAll "^-[0-9]{5}-of-0*([0-9]+)\\.gguf$" $part "${1}" | int -}}
{{- if not (hasPrefix "-00001-" $part) }}
{{ .path }}.file: '{{ $file }}' is a later part of a split model; give the first one, and the others in {{ .path }}.shards.
{{- else if ne $count (len (.model.shards | default list) | add1 | int) }}
{{ .path }}.shards: '{{ $file }}' is the first of {{ $count }} parts, so this needs {{ sub $count 1 }} entries and has {{ len (.model.shards | default list) }}; list every other part.
{{- end }}
{{- end }}
{{- $digests := list -}}
{{- range prepend (.model.shards | default list) .model -}}
{{- with .sha256 }}{{- $digests = append $digests (lower .) -}}{{- end -}}
{{- end -}}
{{- if ne (len $digests) (len (uniq $digests)) }}
{{ .path }}.shards: two of its files have the same sha256; give each its own.
{{- end }}
{{- end }}

{{- /* What an upgrade changes in the models, and what of it is still to be fetched: for NOTES.txt and the test. What was there before
is read from the cluster; where nothing can be read, as with `helm template`, nothing is said. */}}

{{- /* In words, several lines; empty where nothing is known of what was there before. */}}
{{- define "nlocalmodels.upgradeText" -}}
{{- if .Release.IsUpgrade -}}
{{- $name := include "nlocalmodels.fullname" . -}}
{{- $data := get (lookup "v1" "ConfigMap" .Release.Namespace $name | default dict) "data" -}}
{{- if $data -}}
{{- $pod := dig "spec" "template" "spec" dict (lookup "apps/v1" "Deployment" .Release.Namespace $name | default dict) -}}
{{- include "nlocalmodels.changesText" (dict "root" . "former" $data "volumes" (get $pod "volumes" | default list)) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* {root, former (data of the ConfigMap before), volumes (of the pods before)}. */}}
{{- define "nlocalmodels.changesText" -}}
{{- $changes := include "nlocalmodels.changes" . | fromJson -}}
{{- $lines := list -}}
{{- range $word := list "added" "replaced" "removed" "kept" "unchanged" -}}
{{- range get $changes $word -}}
{{- $size := ternary (include "nlocalmodels.humanBytes" .bytes) "" (has $word (list "added" "replaced")) -}}
{{- $lines = append $lines (regexReplaceAll " +$" (printf "  %-10s %-32s %10s" $word .id $size) "") -}}
{{- end -}}
{{- end -}}
{{- if not (or $changes.added $changes.replaced $changes.removed $changes.kept) -}}
This upgrade leaves the models as they are.
{{- else -}}
This upgrade changes the models:
{{ range $lines }}{{ . }}
{{ end -}}
{{- include "nlocalmodels.fetchText" (dict "root" .root "bytes" $changes.fetchBytes "isSameVolume" $changes.isSameVolume) -}}
{{- end -}}
{{- end }}

{{- /* {root, bytes (what the set has and the former has not), isSameVolume}. */}}
{{- define "nlocalmodels.fetchText" -}}
{{- $strategy := .root.Values.storage.strategy -}}
{{- $isLive := include "nlocalmodels.isLive" .root -}}
{{- $all := include "nlocalmodels.humanBytes" (include "nlocalmodels.totalBytes" .root) -}}
{{- if eq $strategy "baked" -}}
All of them come with the image; nothing is fetched.
{{- else if and (eq $strategy "emptyDir") (not (and $isLive .isSameVolume)) -}}
Each new pod fetches all of them: {{ $all }}.
{{- else if not .isSameVolume -}}
To fetch: {{ $all }}, as the volume is another one; what is on it already is not fetched.
{{- else if int64 .bytes -}}
To fetch{{ if eq $strategy "emptyDir" }} in each pod{{ end }}: {{ include "nlocalmodels.humanBytes" .bytes }}, and what the former set still lacks.
{{- else -}}
Nothing new is to be fetched.
{{- end -}}
{{- end }}

{{- /* JSON {added, replaced, removed, kept, unchanged (each a list of {id, bytes}), fetchBytes, isSameVolume}: takes what
changesText does. Of models that were in an image only the files' names are known: such a one is kept, with whatever bytes. */}}
{{- define "nlocalmodels.changes" -}}
{{- $contents := dict -}}
{{- $files := dict -}}
{{- $before := get .former "downloads.yaml" | default (get .former "server.yaml") | default "" | fromYaml -}}
{{- range $model := get $before "models" -}}
{{- $_ := set $contents .id (include "nlocalmodels.contentOf" .) -}}
{{- range prepend (.shards | default list) (omit . "shards") -}}{{- $_ := set $files (include "nlocalmodels.contentOf" .) true -}}{{- end -}}
{{- end -}}
{{- $result := dict "added" list "replaced" list "removed" list "kept" list "unchanged" list -}}
{{- $fetchBytes := int64 0 -}}
{{- $ids := list -}}
{{- range (include "nlocalmodels.models" .root | fromJson).models -}}
{{- $ids = append $ids .id -}}
{{- $content := get $contents .id -}}
{{- $word := "replaced" -}}
{{- if not (hasKey $contents .id) -}}{{- $word = "added" -}}
{{- else if eq $content (include "nlocalmodels.contentOf" .) -}}{{- $word = "unchanged" -}}
{{- else if eq $content (printf "%s \n" .file) -}}{{- $word = "kept" -}}
{{- end -}}
{{- $_ := set $result $word (append (get $result $word) (dict "id" .id "bytes" (int64 .totalBytes))) -}}
{{- range prepend (.shards | default list) (omit . "shards") -}}
{{- if not (hasKey $files (include "nlocalmodels.contentOf" .)) -}}
{{- $fetchBytes = add $fetchBytes (int64 (.sizeBytes | default 0)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $id := keys $contents | sortAlpha -}}
{{- if not (has $id $ids) -}}{{- $_ := set $result "removed" (append $result.removed (dict "id" $id)) -}}{{- end -}}
{{- end -}}
{{- $isSameVolume := false -}}
{{- range .volumes -}}
{{- if eq (toString .name) "models" -}}
{{- $isSameVolume = eq (toYaml (omit (include "nlocalmodels.modelsVolume" $.root | fromYaml) "emptyDir")) (toYaml (omit . "name" "emptyDir")) -}}
{{- end -}}
{{- end -}}
{{- merge $result (dict "fetchBytes" $fetchBytes "isSameVolume" $isSameVolume) | toJson -}}
{{- end }}

{{- /* What decides the bytes of a model, or of one file: a line for each file. */}}
{{- define "nlocalmodels.contentOf" -}}
{{- range prepend (.shards | default list) . }}{{ .file }} {{ lower (.sha256 | default "") | default .source | default "" }}
{{ end -}}
{{- end }}

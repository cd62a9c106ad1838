{{- /* Kubernetes quantities as bytes, and bytes for people. */}}

{{- /* Bytes of a quantity such as 50Gi, 1.5G or 1073741824; empty when it is none. */}}
{{- define "nlocalmodels.bytes" -}}
{{- $text := include "nlocalmodels.plain" . -}}
{{- $factors := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- if regexMatch "^[0-9]{1,15}(\\.[0-9]{1,6})?(Ki|Mi|Gi|Ti|k|M|G|T)?$" $text -}}
{{- $number := regexFind "^[0-9.]+" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- mulf (float64 $number) (float64 (get $factors $unit)) | ceil | int64 -}}
{{- end -}}
{{- end }}

{{- /* A value as it was written: Helm reads numbers as floating-point ones, and would print those from a million on as 1e+06. */}}
{{- define "nlocalmodels.plain" -}}
{{- if kindIs "float64" . -}}{{- printf "%.0f" . -}}{{- else -}}{{- toString . -}}{{- end -}}
{{- end }}

{{- /* A quantity in whole Mi that holds so many bytes. */}}
{{- define "nlocalmodels.mebibytes" -}}
{{- printf "%dMi" (div (add (int64 .) 1048575) 1048576) -}}
{{- end }}

{{- define "nlocalmodels.humanBytes" -}}
{{- if lt (int64 .) 1073741824 -}}
{{- printf "%.0f MiB" (divf (float64 .) 1048576.0) -}}
{{- else -}}
{{- printf "%.1f GiB" (divf (float64 .) 1073741824.0) -}}
{{- end -}}
{{- end }}

{{- define "nlocalmodels.humanSeconds" -}}
{{- if lt (int64 .) 120 -}}
{{- printf "%d s" (int64 .) -}}
{{- else -}}
{{- printf "%d min" (div (add (int64 .) 59) 60) -}}
{{- end -}}
{{- end }}

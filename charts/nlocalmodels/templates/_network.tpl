{{- /* Rules of network policies. */}}

{{- define "nlocalmodels.dnsEgress" -}}
# Name resolution, wherever the cluster has it.
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end }}

{{- /* The ports of all sources, mirrors, the endpoints and the proxies; anywhere but link-local addresses, where clouds keep
credentials. */}}
{{- define "nlocalmodels.downloadEgress" -}}
{{- $urls := list (.Values.download.endpoint | default "https://huggingface.co") .Values.download.proxy.http .Values.download.proxy.https (.Values.download.s3 | default dict).endpoint -}}
{{- range (include "nlocalmodels.models" . | fromJson).models -}}
{{- range prepend (.shards | default list) . -}}
{{- $urls = concat $urls (prepend (.mirrors | default list) .source) -}}
{{- end -}}
{{- end -}}
{{- $ports := list -}}
{{- $plain := (.Values.download.oci | default dict).plainHttp | default list -}}
{{- range $url := $urls -}}
{{- if hasPrefix "oci://" ($url | default "") -}}
{{- $registry := regexReplaceAll "^oci://([^/]*)/.*$" $url "${1}" -}}
{{- $url = printf "%s://%s/" (ternary "http" "https" (has $registry $plain)) $registry -}}
{{- end -}}
{{- with $url -}}
{{- if regexMatch "^https?://" (. | default "") -}}
{{- $authority := regexReplaceAll "^https?://([^/?#]*@)?([^/?#]*).*$" . "${2}" -}}
{{- $port := regexFind ":[0-9]+$" $authority | trimPrefix ":" | default (ternary "443" "80" (hasPrefix "https" .)) -}}
{{- $ports = append $ports (int $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "nlocalmodels.dnsEgress" . }}
{{- if not .Values.download.offline }}
- to:
    - ipBlock:
        cidr: 0.0.0.0/0
        except: [169.254.0.0/16]
    - ipBlock:
        cidr: ::/0
        except: ["fe80::/10", "fd00:ec2::/32"]
  ports:
    # 443 as well, where redirects lead.
    {{- range append $ports 443 | uniq | sortAlpha }}
    - port: {{ . }}
      protocol: TCP
    {{- end }}
{{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end }}

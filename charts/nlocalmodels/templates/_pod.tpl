{{- /* Pieces that the Deployment's and the Jobs' pods share. */}}

{{- define "nlocalmodels.image" -}}
{{- .repository }}{{ ternary (printf "@%s" .digest) (printf ":%s" .tag) (ne .digest "") -}}
{{- end }}

{{- define "nlocalmodels.pullPolicy" -}}
{{- .pullPolicy | default (ternary "IfNotPresent" "Always" (ne .digest "")) -}}
{{- end }}

{{- /* With baked models in its own image, the server's container runs that one. */}}
{{- define "nlocalmodels.serverImage" -}}
{{- $image := .Values.image.server -}}
{{- if and (eq .Values.storage.strategy "baked") (eq .Values.storage.baked.mount "container") -}}
{{- $image = merge (dict "pullPolicy" .Values.image.server.pullPolicy) .Values.storage.baked.image -}}
{{- end -}}
image: {{ include "nlocalmodels.image" $image | quote }}
imagePullPolicy: {{ include "nlocalmodels.pullPolicy" $image }}
{{- end }}

{{- /* What every pod of the chart says of itself. */}}
{{- define "nlocalmodels.podBase" -}}
serviceAccountName: {{ include "nlocalmodels.serviceAccountName" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "nlocalmodels.securityContext" -}}
{{- with .Values.securityContext -}}
securityContext: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* The source of the volume with the models; none where they are in the server's image. */}}
{{- define "nlocalmodels.modelsVolume" -}}
{{- $storage := .Values.storage -}}
{{- if eq $storage.strategy "emptyDir" -}}
emptyDir:
  sizeLimit: {{ include "nlocalmodels.mebibytes" (include "nlocalmodels.sizeLimitBytes" .) }}
{{- else if eq $storage.strategy "pvc" -}}
persistentVolumeClaim:
  claimName: {{ include "nlocalmodels.claimName" . | quote }}
{{- else if eq $storage.baked.mount "volume" -}}
image:
  reference: {{ include "nlocalmodels.image" $storage.baked.image | quote }}
  pullPolicy: {{ include "nlocalmodels.pullPolicy" (merge (dict "pullPolicy" .Values.image.server.pullPolicy) $storage.baked.image) }}
{{- end }}
{{- end }}

{{- /* A container that runs the downloader: {root, name, args (a list), fetches, isDurable, isSidecar, readOnly}. */}}
{{- define "nlocalmodels.downloaderContainer" -}}
{{- $root := .root -}}
{{- $download := $root.Values.download -}}
- name: {{ .name }}
  image: {{ include "nlocalmodels.image" $root.Values.image.downloader | quote }}
  imagePullPolicy: {{ include "nlocalmodels.pullPolicy" $root.Values.image.downloader }}
  args: {{ toJson .args }}
  {{- if .isSidecar }}
  restartPolicy: Always
  {{- end }}
  env:
    - name: POD_UID
      valueFrom:
        fieldRef:
          fieldPath: metadata.uid
    {{- if .isDurable }}
    - name: DOWNLOAD_DURABLE
      value: "true"
    {{- end }}
    {{- if .fetches }}
    {{- if not .isDurable }}
    - name: MODEL_PATH_LIMIT_BYTES
      value: {{ include "nlocalmodels.sizeLimitBytes" $root | quote }}
    {{- end }}
    {{- include "nlocalmodels.downloadEnv" $root | trim | nindent 4 }}
    {{- with $download.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- end }}
  resources: {{- toYaml $download.resources | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  {{- include "nlocalmodels.securityContext" $root | nindent 2 }}
  volumeMounts:
    - name: models
      mountPath: {{ include "nlocalmodels.modelPath" $root }}
      {{- if .readOnly }}
      readOnly: true
      {{- end }}
    - name: config
      mountPath: /etc/nlocalmodels
      readOnly: true
    {{- if and .fetches $download.caBundle.configMap }}
    - name: ca-bundle
      mountPath: /etc/nlocalmodels-ca
      readOnly: true
    {{- end }}
    {{- if and .fetches ($download.oci | default dict).existingSecret }}
    - name: registries
      mountPath: /etc/nlocalmodels-registries
      readOnly: true
    {{- end }}
    {{- if .fetches }}{{ with $download.extraVolumeMounts }}{{ toYaml . | nindent 4 }}{{ end }}{{ end }}
{{- end }}

{{- /* How to fetch, as the downloader's settings have it. */}}
{{- define "nlocalmodels.downloadEnv" -}}
{{- with .Values.download -}}
{{- $env := dict "DOWNLOAD_ATTEMPTS" .attempts "DOWNLOAD_CONNECTIONS" .connections "DOWNLOAD_STALL_SECONDS" .stallSeconds -}}
{{- with .endpoint }}{{- $_ := set $env "HF_ENDPOINT" . -}}{{- end -}}
{{- $s3 := .s3 | default dict -}}
{{- with $s3.endpoint }}{{- $_ := set $env "AWS_ENDPOINT_URL_S3" . -}}{{- end -}}
{{- $oci := .oci | default dict -}}
{{- if $oci.existingSecret }}{{- $_ := set $env "DOCKER_CONFIG" "/etc/nlocalmodels-registries" -}}{{- end -}}
{{- with $oci.plainHttp }}{{- $_ := set $env "OCI_PLAIN_HTTP" (join "," .) -}}{{- end -}}
{{- with $s3.region }}{{- $_ := set $env "AWS_REGION" . -}}{{- end -}}
{{- with .proxy.http }}{{- $_ := set $env "HTTP_PROXY" . -}}{{- end -}}
{{- with .proxy.https }}{{- $_ := set $env "HTTPS_PROXY" . -}}{{- end -}}
{{- with .proxy.noProxy }}{{- $_ := set $env "NO_PROXY" (join "," .) -}}{{- end -}}
{{- if .caBundle.configMap }}{{- $_ := set $env "REQUESTS_CA_BUNDLE" (printf "/etc/nlocalmodels-ca/%s" .caBundle.key) -}}{{- end -}}
{{- if .offline }}{{- $_ := set $env "DOWNLOAD_OFFLINE" "true" -}}{{- end -}}
{{- with .maxBandwidth }}{{- $_ := set $env "DOWNLOAD_MAX_BYTES_PER_SECOND" (include "nlocalmodels.bytes" .) -}}{{- end -}}
{{- range $name, $value := $env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- if and .hfToken.existingSecret (not .offline) }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .hfToken.existingSecret | quote }}
      key: {{ .hfToken.key | quote }}
{{- end }}
{{- if and $s3.existingSecret (not .offline) }}
{{- range $key := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" "AWS_SESSION_TOKEN" }}
- name: {{ $key }}
  valueFrom:
    secretKeyRef:
      name: {{ $s3.existingSecret | quote }}
      key: {{ $key }}
      {{- if eq $key "AWS_SESSION_TOKEN" }}
      optional: true
      {{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Volumes of whoever downloads: certificates, and what the values add. */}}
{{- define "nlocalmodels.downloadVolumes" -}}
{{- with .Values.download.caBundle.configMap }}
- name: ca-bundle
  configMap:
    name: {{ . | quote }}
{{- end }}
{{- with (.Values.download.oci | default dict).existingSecret }}
- name: registries
  secret:
    secretName: {{ . | quote }}
    items:
      - key: .dockerconfigjson
        path: config.json
{{- end }}
{{- with .Values.download.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* The Job that fills a claim. Its name carries a hash of this, so the chart's version is not in it. */}}
{{- define "nlocalmodels.downloadJobSpec" -}}
{{- $args := list "sync" "--config" "/etc/nlocalmodels/downloads.yaml" -}}
# A failed pod stays, so that its log and its termination message can be read.
backoffLimit: 6
podFailurePolicy:
  rules:
    # The node's doing, not the download's.
    - action: Ignore
      onPodConditions:
        - type: DisruptionTarget
    # Wrong settings, denied, gone, corrupt, refused: another attempt would say the same.
    - action: FailJob
      onExitCodes:
        containerName: model-downloader
        operator: In
        values: [2, 10, 11, 13, 15]
template:
  metadata:
    labels:
      {{- include "nlocalmodels.podLabels" (dict "root" . "component" "downloader") | nindent 6 }}
      {{- with .Values.download.podLabels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    annotations:
      nlocalmodels.io/set: {{ include "nlocalmodels.setId" . | quote }}
      # A Job that failed over a dead source is done again once the source is corrected.
      checksum/downloads: {{ include "nlocalmodels.downloadsYaml" . | sha256sum | trunc 16 | quote }}
      {{- with .Values.download.podAnnotations }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  spec:
    restartPolicy: Never
    {{- include "nlocalmodels.podBase" . | nindent 4 }}
    terminationGracePeriodSeconds: 30
    containers:
      {{- include "nlocalmodels.downloaderContainer" (dict "root" . "name" "model-downloader" "args" $args "fetches" true "isDurable" true) | nindent 6 }}
    volumes:
      - name: models
        {{- include "nlocalmodels.modelsVolume" . | nindent 8 }}
      - name: config
        configMap:
          name: {{ include "nlocalmodels.fullname" . }}
      {{- with include "nlocalmodels.downloadVolumes" . | trim }}{{ . | nindent 6 }}{{ end }}
    {{- with include "nlocalmodels.fillerPlacement" . | trim }}{{ . | nindent 4 }}{{ end }}
{{- end }}

{{- /* "true" where only one node can mount the claim. */}}
{{- define "nlocalmodels.isNodeBound" -}}
{{- with .Values.storage -}}
{{- if and (eq .strategy "pvc") (not (or .pvc.existingClaim (has "ReadWriteMany" .pvc.accessModes))) -}}true{{- end -}}
{{- end -}}
{{- end }}

{{- /* On the node where the server's pods are. */}}
{{- define "nlocalmodels.besideServer" -}}
podAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    - topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels: {{- include "nlocalmodels.selectorLabels" (dict "root" . "component" "server") | nindent 10 }}
{{- end }}

{{- /* Where a pod that fills the claim may run: anywhere, unless only one node can mount it. */}}
{{- define "nlocalmodels.fillerPlacement" -}}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if include "nlocalmodels.isNodeBound" . }}
affinity: {{- include "nlocalmodels.besideServer" . | nindent 2 }}
{{- end }}
{{- end }}

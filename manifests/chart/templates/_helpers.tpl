{{/* The driver's name: the same in every cluster, it is part of each volume. */}}
{{- define "quarry.driverName" -}}
lvm.quarry.storage
{{- end }}

{{/* The name of everything that belongs to the nodes' pods. One Quarry serves a cluster, so no release name is in it. */}}
{{- define "quarry.nodeName" -}}
quarry-node
{{- end }}

{{/* Labels that never change: the DaemonSet finds its pods by them. */}}
{{- define "quarry.selectorLabels" -}}
app.kubernetes.io/name: quarry
app.kubernetes.io/component: node
{{- end }}

{{/* Labels of every object. */}}
{{- define "quarry.labels" -}}
{{ include "quarry.selectorLabels" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{/* The folder of the CSI socket, on the host and in the driver's container alike. */}}
{{- define "quarry.socketDir" -}}
{{ .Values.kubeletDir }}/plugins/{{ include "quarry.driverName" . }}
{{- end }}

{{/* Annotations of what Helm makes for a hook alone (when, weight): there before the hook's job, gone after its success. */}}
{{- define "quarry.hook" -}}
helm.sh/hook: {{ .when }}
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* The pod of a hook's job (root, account, container, args): the capacity-reporter's program, once. */}}
{{- define "quarry.hookPod" -}}
serviceAccountName: {{ .account }}
restartPolicy: Never
enableServiceLinks: false
# Where the nodes' own pods can run and reach the API server, so can this one.
hostNetwork: true
dnsPolicy: Default
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
nodeSelector:
  kubernetes.io/os: linux
  {{- with .root.Values.nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .root.Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: {{ .container }}
    image: {{ printf "%s:%s" .root.Values.driver.image.repository (.root.Values.driver.image.tag | default .root.Chart.AppVersion) | quote }}
    imagePullPolicy: {{ .root.Values.driver.image.pullPolicy }}
    command: [/usr/bin/quarry-capacity-reporter]
    args:
      {{- range .args }}
      - {{ . | quote }}
      {{- end }}
    {{- if or .root.Values.kubernetesApi.host .root.Values.kubernetesApi.port }}
    env:
      {{- with .root.Values.kubernetesApi.host }}
      - name: KUBERNETES_SERVICE_HOST
        value: {{ . | quote }}
      {{- end }}
      {{- with .root.Values.kubernetesApi.port }}
      - name: KUBERNETES_SERVICE_PORT
        value: {{ . | quote }}
      {{- end }}
    {{- end }}
    securityContext:
      runAsUser: 65534
      runAsGroup: 65534
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities:
        drop: [ALL]
      seccompProfile:
        type: RuntimeDefault
    terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

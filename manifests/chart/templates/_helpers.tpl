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

{{/* The first part of all names. At most 52 characters: `-controller` still fits into the 63 of a label. */}}
{{- define "stagepost.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What never changes in the life of a release, for selectors. The component is added by each user. */}}
{{- define "stagepost.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Of pods: nothing that changes with the chart's version, so that an upgrade which changes nothing restarts nothing. */}}
{{- define "stagepost.podLabels" -}}
{{ include "stagepost.selector" . }}
app.kubernetes.io/part-of: stagepost
{{- end -}}

{{- define "stagepost.labels" -}}
{{ include "stagepost.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{- define "stagepost.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* The ServiceAccount of one component: {root, component}. Without ours, all run as the one that is named. */}}
{{- define "stagepost.serviceAccountName" -}}
{{- $account := .root.Values.serviceAccount -}}
{{- if not $account.create -}}
{{- required "serviceAccount.create is false: name the ServiceAccount in serviceAccount.name" $account.name -}}
{{- else if eq .component "controller" -}}
{{- default (printf "%s-controller" (include "stagepost.fullname" .root)) $account.name -}}
{{- else -}}
{{- printf "%s-%s" (include "stagepost.fullname" .root) .component -}}
{{- end -}}
{{- end -}}

{{/* The subject of a binding, for one component: {root, component}. */}}
{{- define "stagepost.subjects" -}}
subjects:
- kind: ServiceAccount
  name: {{ include "stagepost.serviceAccountName" . }}
  namespace: {{ .root.Release.Namespace }}
{{- end -}}

{{/* The parts of a pod that the `restricted` Pod Security Standard asks for. */}}
{{- define "stagepost.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "stagepost.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Where a pod of ours may run, from the controller's values; may be empty. */}}
{{- define "stagepost.scheduling" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with .Values.controller.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.controller.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.controller.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.controller.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What the controller may do where it watches: in all namespaces, or in each listed one. The comments are part of the
output: whoever reads the role sees why. */}}
{{- define "stagepost.controllerRules" -}}
# Our kinds: read and followed.
- apiGroups: [stagepost.dev]
  resources: [messagestores, ingressroutes, forwardingprocessors]
  verbs: [get, list, watch]
# Their finalizers are set and removed; nothing else of an object is written. An IngressRoute has none.
- apiGroups: [stagepost.dev]
  resources: [messagestores, forwardingprocessors]
  verbs: [patch]
# Their status is written by server-side apply.
- apiGroups: [stagepost.dev]
  resources: [messagestores/status, ingressroutes/status, forwardingprocessors/status]
  verbs: [patch]
# An API server with the plugin OwnerReferencesPermissionEnforcement asks for it when a child names its owner.
- apiGroups: [stagepost.dev]
  resources: [messagestores/finalizers, ingressroutes/finalizers, forwardingprocessors/finalizers]
  verbs: [update]
# The workers. Followed, so that what others change is set right; server-side apply needs create and patch; what is no
# longer wanted is deleted.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
# Which plans are still in use: a plan that a ReplicaSet with pods names is kept.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [list]
# Services of the routes, and those that targets name; plans, and CA certificates in ConfigMaps; the workers' accounts, which
# have no rights and no token.
- apiGroups: [""]
  resources: [services, configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
# Ingress workers with two or more replicas get one.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
{{- if .Values.networkPolicy.enabled }}
# Because of networkPolicy.enabled: the workers' policies.
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
# The workers' addresses, whose status is read, and whether they are ready.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# Only by name, as an object of ours names it: whether it is there and complete, and the broker's address. No list, no watch.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
# What happened to our objects; a repeated Event is counted up by a patch.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
# What broker.clusterRef names.
- apiGroups: [rabbitmq.com]
  resources: [rabbitmqclusters]
  verbs: [get]
{{- end -}}

{{/* What the clean-up may do where the controller watches. */}}
{{- define "stagepost.cleanupRules" -}}
# The kinds that may have a finalizer of ours: found, and it is removed.
- apiGroups: [stagepost.dev]
  resources: [messagestores, forwardingprocessors]
  verbs: [list, patch]
{{- end -}}

{{/* Binds the rules to one component where the controller watches: {root, component, rules}. */}}
{{- define "stagepost.bound" -}}
{{- $name := printf "%s-%s" (include "stagepost.fullname" .root) .component -}}
{{- $bound := . -}}
{{- with .root.Values.controller.watchNamespaces }}
{{- range . }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ . }}
  labels:
    {{- include "stagepost.labels" $bound.root | nindent 4 }}
    app.kubernetes.io/component: {{ $bound.component }}
rules:
{{ $bound.rules }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ . }}
  labels:
    {{- include "stagepost.labels" $bound.root | nindent 4 }}
    app.kubernetes.io/component: {{ $bound.component }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ $name }}}
{{ include "stagepost.subjects" $bound }}
{{- end }}
{{- else }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ $name }}
  labels:
    {{- include "stagepost.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
rules:
{{ .rules }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $name }}
  labels:
    {{- include "stagepost.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ $name }}}
{{ include "stagepost.subjects" . }}
{{- end }}
{{- end -}}

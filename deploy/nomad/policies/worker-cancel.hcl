# In place of worker.hcl: lets it stop and purge jobs too (`cancel`, `timeout_seconds`, WORKER_PURGE_FINISHED,
# WORKER_PLACEMENT_DEADLINE_SECONDS). Nomad has no right for that alone: whoever has the worker's token may then
# register any job in the namespace, with any driver that its nodes allow.
#
#   nomad acl policy apply -namespace platform -job dispatch-worker dispatch-worker deploy/nomad/policies/worker-cancel.hcl
namespace "dispatch" {
  capabilities = ["read-job", "list-jobs", "dispatch-job", "submit-job"]
}

# The least a worker works with: dispatch, see how it went, and find its jobs again after a crash.
#
#   nomad acl policy apply -namespace platform -job dispatch-worker dispatch-worker deploy/nomad/policies/worker.hcl
#
# A namespace is the finest grain there is: give what may be dispatched one of its own.
namespace "dispatch" {
  capabilities = ["read-job", "list-jobs", "dispatch-job"]
}

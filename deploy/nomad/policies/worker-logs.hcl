# Besides one of the others, under a name of its own: lets it read the end of a failed task's output for the reply
# (WORKER_LOG_TAIL_BYTES). What a job of the namespace prints can then be read by whoever reads the replies.
#
#   nomad acl policy apply -namespace platform -job dispatch-worker dispatch-worker-logs deploy/nomad/policies/worker-logs.hcl
namespace "dispatch" {
  capabilities = ["read-logs"]
}

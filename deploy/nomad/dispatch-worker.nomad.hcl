# Runs the dispatch worker on the Nomad whose jobs it dispatches.
#
#   nomad namespace apply platform && nomad namespace apply dispatch
#   nomad acl policy apply -namespace platform -job dispatch-worker dispatch-worker deploy/nomad/policies/worker.hcl
#   nomad var put -namespace platform nomad/jobs/dispatch-worker redis_url=rediss://... redis_password=...
#   nomad job run -var image=registry.example/nomad-dispatch-worker@sha256:... deploy/nomad/dispatch-worker.nomad.hcl
#
# docs/deploy.md tells the rest.

variable "image" {
  type        = string
  description = "The image, by digest."
  default     = "nomad-dispatch-worker:0.1.0"
}

variable "namespace" {
  type        = string
  description = "Where the worker itself runs. Not where its jobs are: it must not be able to change itself."
  default     = "platform"
}

variable "jobs_namespace" {
  type        = string
  description = "Where the jobs are that it dispatches."
  default     = "dispatch"
}

variable "datacenters" {
  type        = list(string)
  description = "Where it may run."
  default     = ["*"]
}

variable "count" {
  type        = number
  description = "Replicas; they share the work."
  default     = 2
}

variable "drain_seconds" {
  type        = number
  description = "From SIGTERM to exit. The client's max_kill_timeout (30s unless changed) must be 10 s longer."
  default     = 20
}

variable "policy" {
  type        = string
  description = "What may be dispatched (TOML, docs/settings.md). Empty: whatever the ACL policy allows."
  default     = ""
}

job "dispatch-worker" {
  namespace   = var.namespace
  datacenters = var.datacenters
  type        = "service"
  # Above what it dispatches (50 by default): it must be placed, and stay, when the cluster is full.
  priority = 70

  # One new worker first; the others follow when it is ready, or it goes again and the old version stays.
  update {
    canary            = 1
    max_parallel      = 1
    health_check      = "checks"
    min_healthy_time  = "10s"
    healthy_deadline  = "3m"
    progress_deadline = "10m"
    auto_promote      = true
    auto_revert       = true
  }

  spread {
    attribute = "${node.datacenter}"
  }

  spread {
    attribute = "${node.unique.id}"
  }

  group "worker" {
    count = var.count

    network {
      port "http" {}
    }

    service {
      name     = "dispatch-worker"
      provider = "nomad"
      port     = "http"
      tags     = ["metrics"]

      check {
        name     = "alive"
        type     = "http"
        path     = "/healthz"
        interval = "10s"
        timeout  = "3s"

        # A loop that does not come round: a new process is the cure.
        check_restart {
          limit = 3
          grace = "60s"
        }
      }

      check {
        name     = "ready"
        type     = "http"
        path     = "/readyz"
        interval = "5s"
        timeout  = "3s"
        # Redis or Nomad may be away for a while: no reason to restart it, but one to stop an update.
        on_update = "require_healthy"
      }
    }

    restart {
      interval = "5m"
      attempts = 5
      delay    = "10s"
      mode     = "delay"
    }

    reschedule {
      delay          = "10s"
      delay_function = "exponential"
      max_delay      = "5m"
      unlimited      = true
    }

    ephemeral_disk {
      size = 150
    }

    task "worker" {
      driver = "docker"
      user   = "65532:65532"

      config {
        image           = var.image
        args            = ["run"]
        ports           = ["http"]
        readonly_rootfs = true
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]

        mount {
          type   = "tmpfs"
          target = "/tmp"

          tmpfs_options {
            size = 16777216
          }
        }
      }

      # Its own identity is its token: nobody has to make, keep or renew one, and it is void when the allocation
      # ends. As a file: the worker reads it again when it changes, and no process listing shows it.
      identity {
        env  = false
        file = true
      }

      env {
        # The task's own way to the API, on this node, through the agent: no address, no certificates.
        NOMAD_ADDR       = "unix://${NOMAD_SECRETS_DIR}/api.sock"
        NOMAD_TOKEN_FILE = "${NOMAD_SECRETS_DIR}/nomad_token"
        # Nomad sets this to the task's own namespace; the worker's default is that of its jobs.
        NOMAD_NAMESPACE = var.jobs_namespace

        REDIS_PASSWORD_FILE  = "${NOMAD_SECRETS_DIR}/redis_password"
        WORKER_ALLOW_FILE    = var.policy == "" ? "" : "${NOMAD_TASK_DIR}/policy.toml"
        WORKER_HTTP_ADDR     = ":${NOMAD_PORT_http}"
        WORKER_DRAIN_SECONDS = var.drain_seconds
      }

      # A task may read the variables below its job's path without any policy.
      template {
        destination = "secrets/redis.env"
        env         = true
        change_mode = "restart"
        data        = <<-EOT
          REDIS_URL={{ with nomadVar "nomad/jobs/dispatch-worker" }}{{ .redis_url }}{{ end }}
        EOT
      }

      template {
        destination = "secrets/redis_password"
        # As the user it runs as has no name on the node, the file cannot be given to it.
        perms       = "0444"
        change_mode = "restart"
        data        = <<-EOT
          {{- with nomadVar "nomad/jobs/dispatch-worker" }}{{ .redis_password }}{{ end -}}
        EOT
      }

      dynamic "template" {
        for_each = var.policy == "" ? [] : [var.policy]

        content {
          destination = "local/policy.toml"
          # The worker reads it again when it changes.
          change_mode = "noop"
          data        = template.value
        }
      }

      kill_signal  = "SIGTERM"
      kill_timeout = "${var.drain_seconds + 10}s"

      resources {
        cpu        = 200
        memory     = 128
        memory_max = 512
      }

      logs {
        max_files     = 3
        max_file_size = 10
      }
    }
  }
}

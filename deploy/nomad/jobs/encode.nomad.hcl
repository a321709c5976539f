# Needs a payload and a tenant; prints how many bytes came in.
#
#   dispatch-worker dispatch -meta tenant=acme encode input.json
job "encode" {
  type        = "batch"
  datacenters = ["*"]

  parameterized {
    payload       = "required"
    meta_required = ["tenant"]
  }

  group "encode" {
    # The worker decides about repeats: with Nomad's own a failing job would run several times.
    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "encode" {
      driver = "raw_exec"

      config {
        command = "/bin/sh"
        args    = ["-c", "echo \"$NOMAD_META_tenant: $(($(wc -c < local/input.json))) bytes\""]
      }

      dispatch_payload {
        file = "input.json"
      }

      logs {
        max_files     = 1
        max_file_size = 5
      }

      resources {
        cpu    = 20
        memory = 16
      }
    }
  }
}

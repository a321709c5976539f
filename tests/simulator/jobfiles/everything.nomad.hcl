job "everything" {
  type        = "batch"
  region      = "global"
  namespace   = "default"
  node_pool   = "default"
  datacenters = ["dc1", "dc2"]
  priority    = 70
  all_at_once = true
  name        = "everything"

  parameterized {
    payload       = "required"
    meta_required = ["tenant"]
    meta_optional = ["quality", "preset"]
  }

  meta = {
    owner   = "media"
    "a-key" = "b"
  }

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  constraint {
    distinct_hosts = true
  }

  affinity {
    attribute = "${node.datacenter}"
    value     = "dc1"
    weight    = 75
  }

  spread {
    attribute = "${node.datacenter}"
    weight    = 100

    target "dc1" {
      percent = 60
    }

    target "dc2" {
      percent = 40
    }
  }

  reschedule {
    attempts       = 2
    interval       = "1h"
    delay          = "30s"
    delay_function = "exponential"
    max_delay      = "120s"
    unlimited      = false
  }

  group "encode" {
    count            = 2
    max_run_duration = "10m30s"
    shutdown_delay   = "2s"

    meta {
      tier = "gold"
    }

    constraint {
      attribute = "${attr.cpu.numcores}"
      operator  = ">="
      value     = 2
    }

    constraint {
      attribute = "${attr.nomad.version}"
      version   = ">= 1.5"
    }

    constraint {
      attribute = "${node.class}"
      regexp    = "^big"
    }

    constraint {
      attribute    = "${meta.tags}"
      set_contains = "a,b"
    }

    constraint {
      distinct_property = "${meta.rack}"
      value             = 2
    }

    affinity {
      attribute = "${node.class}"
      operator  = "!="
      value     = "small"
    }

    restart {
      attempts         = 2
      interval         = "5m"
      delay            = "1s"
      mode             = "fail"
      render_templates = true
    }

    disconnect {
      lost_after = "1h"
      replace    = false
      reconcile  = "keep_original"
    }

    ephemeral_disk {
      size    = 500
      migrate = true
      sticky  = true
    }

    task "prepare" {
      driver = "exec"

      lifecycle {
        hook    = "prestart"
        sidecar = false
      }

      config {
        command = "/bin/true"
      }
    }

    task "main" {
      driver         = "raw_exec"
      leader         = true
      user           = "nobody"
      kill_timeout   = "30s"
      kill_signal    = "SIGTERM"
      shutdown_delay = "1s"

      config {
        command = "/bin/sh"
        args    = ["-c", "cat local/input.json"]

        mount {
          type   = "bind"
          source = "a"
        }

        mount {
          type   = "bind"
          source = "b"
        }

        labels = { a = "b" }
      }

      env = {
        MODE = "fast"
      }

      dispatch_payload {
        file = "input.json"
      }

      artifact {
        source      = "https://example.invalid/tool.tgz"
        destination = "local/tool"
        mode        = "file"

        options {
          checksum = "md5:d41d8cd98f00b204e9800998ecf8427e"
        }

        headers {
          X-Nomad = "yes"
        }
      }

      artifact {
        source = "https://example.invalid/other.tgz"
      }

      template {
        source          = "local/in.tpl"
        destination     = "local/out"
        left_delimiter  = "[["
        right_delimiter = "]]"
        wait {
          min = "5s"
          max = "10s"
        }
      }

      meta {
        role = "main"
      }

      constraint {
        attribute = "${attr.driver.raw_exec}"
        value     = "1"
      }

      affinity {
        attribute = "${node.class}"
        value     = "gpu"
        weight    = -20
      }

      restart {
        attempts = 1
        mode     = "fail"
        interval = "1m"
        delay    = "2s"
      }

      logs {
        max_files     = 2
        max_file_size = 5
        disabled      = false
      }

      identity {
        env  = true
        file = true
      }

      identity {
        name = "vault"
        aud  = ["vault.io"]
        ttl  = "1h"
      }

      resources {
        cpu        = 200
        memory     = 128
        memory_max = 256
      }
    }

    task "cleanup" {
      driver = "raw_exec"

      lifecycle {
        hook = "poststop"
      }

      config {
        command = "/bin/true"
      }
    }
  }

  group "second" {
    task "only" {
      driver = "raw_exec"

      config {
        command = "/bin/true"
      }

      resources {
        cores  = 1
        memory = 20
      }
    }
  }
}

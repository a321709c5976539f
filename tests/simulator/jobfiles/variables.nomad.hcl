# Variables, locals, expressions, heredocs and runtime references.
variable "who" {
  type        = string
  default     = "wörld \"quoted\" \n next"
  description = "A name."
}

variable "base" {
  type    = number
  default = 3
}

variable "names" {
  type    = list(string)
  default = ["a", "b"]
}

variable "settings" {
  type    = object({ region = string, size = number })
  default = { region = "north", size = 2 }
}

variable "enabled" {
  default = true
}

locals {
  greeting = "hello ${var.who}"
  image    = { tag = local.greeting, size = var.settings.size }
}

job "variables" {
  type        = "batch"
  datacenters = ["*"]
  priority    = 40 + var.base * 2
  namespace   = "default"

  meta {
    text   = "1"
    number = 2
    float  = 1.5
    flag   = true
    joined = "x${var.base}y"
    tag    = local.image.tag
  }

  parameterized {
    payload       = "optional"
    meta_optional = concat(var.names, ["seconds"])
  }

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  constraint {
    attribute = attr.cpu.arch
    operator  = "!="
    value     = "windows"
  }

  /* A block
     comment. */
  group "main" {
    count = var.enabled ? 2 : 1

    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "run" {
      driver = "raw_exec"

      config {
        command = "/bin/sh"
        args = [
          "-c",
          "echo ${NOMAD_META_who} $${KEPT} ${var.who} $HOME 100%% %%{if} ${local.greeting} é \t \\ \"q\" \u00e9",
          var.base,
          -1,
          1.5,
          "${env["PATH"]} ${meta.who} ${node.unique.name}",
        ]
      }

      env {
        PLAIN   = "x"
        COND    = var.who == "x" ? "y" : "z"
        UPPER   = upper("abc")
        INDEXED = var.names[0]
        DOTTED  = var.settings.region
        JOINED  = "${join(",", var.names)}"
        FORMAT  = format("%s-%d", "a", var.base)
        NUMBER  = 5
        SUM     = "${var.base + 1}"
        LENGTH  = length(var.names)
        HEREDOC = <<EOF
one ${var.base}
  two
EOF
        RUNTIME = "${NOMAD_ALLOC_DIR}/x"
      }

      template {
        data        = <<EOT
line1 {{ env "X" }} ${NOMAD_JOB_ID} \n "q" $${literal}
  line2 ${var.settings["region"]}
EOT
        destination = "local/a"
        change_mode = "noop"
      }

      template {
        data        = <<-EOT
          trimmed
            indented ${var.base}

          last
          EOT
        destination = "secrets/b.env"
        env         = true
        perms       = "600"
        splay       = "1m"
      }

      kill_timeout = "20s"
    }
  }
}

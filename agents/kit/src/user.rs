//! Programs that must not run as root: started as an ordinary user where this agent is root, as itself where it is not.

use muster_agent::{ActionError, Context, guard::Command};

/// Whom programs are run as.
#[derive(Clone, Debug)]
pub struct RunAs(Option<User>);

#[derive(Clone, Debug)]
struct User {
    uid: u32,
    gid: u32,
}

impl RunAs {
    /// For root: the user `name` of `/etc/passwd`. For anyone else: themselves.
    ///
    /// # Errors
    /// [`ActionError::NeedsPerson`] when there is no such user; [`ActionError::Permanent`] when it is root again.
    pub fn ordinary(name: &str) -> Result<Self, ActionError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self(None));
        }
        let users = std::fs::read_to_string("/etc/passwd")
            .map_err(|e| ActionError::retry(format!("/etc/passwd can't be read: {e}")))?;
        let user = find(&users, name).ok_or_else(|| {
            ActionError::needs_person(format!("there is no user {name:?} in /etc/passwd; make it, or name another"))
        })?;
        if user.uid == 0 {
            return Err(ActionError::permanent(format!("{name} is root; an ordinary user is needed")));
        }
        Ok(Self(Some(user)))
    }

    /// A program to be started as this user, which ends with the attempt.
    pub fn command(&self, ctx: &Context, program: impl Into<String>) -> Command {
        let Some(user) = &self.0 else { return ctx.command(program) };
        let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
        ctx.command("setpriv").args(["--reuid", &uid, "--regid", &gid, "--clear-groups"]).arg(program)
    }
}

fn find(users: &str, name: &str) -> Option<User> {
    let mut fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let user = fields.find(|fields| fields.len() > 3 && fields[0] == name)?;
    Some(User { uid: user[2].parse().ok()?, gid: user[3].parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_their_whole_name() {
        let users = "root:x:0:0:root:/root:/bin/sh\npostgres:x:104:105::/var/lib/postgresql:/bin/sh\n";
        assert!(matches!(find(users, "postgres"), Some(User { uid: 104, gid: 105 })));
        assert!(find(users, "post").is_none());
    }
}
